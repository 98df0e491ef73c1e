"""Fixtures of several test modules: PostgreSQL, and where ledgers are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import ABSENT, REQUIRED, Cluster, binaries


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """One cluster for all tests of the session."""
    found = binaries()
    if found is None and os.environ.get(REQUIRED) != "required":
        pytest.skip(ABSENT)
    assert found is not None, ABSENT
    with Cluster(found) as running:
        yield running


@pytest.fixture
def database_url(postgres: Cluster) -> str:
    """An empty PostgreSQL database, as FOUNDRY_LEDGER names it."""
    return postgres.url(postgres.empty_database())


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_at(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """FOUNDRY_LEDGER's value, for both kinds of ledger."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger")
    url: str = request.getfixturevalue("database_url")
    return url
