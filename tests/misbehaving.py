"""One run over rows that each meet a fault of their own, among rows that are answered: what became of every one.

The row's text names its fault, so the endpoint, a real one on 127.0.0.1, misbehaves on command. One connection and no
waiting, so that the same happens every time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foundry_pipeline.config.settings import Settings
from foundry_pipeline.invoke import CallOptions, SliceReport
from tests.fake_model import FakeModel, Reply, Request
from tests.invoking import Bench

MOST_ATTEMPTS = 5
CAT = Reply({"label": "cat"})
FINE = "fine"


@dataclass(frozen=True)
class Seen:
    """What became of a row: its line in `responses`, the requests that the endpoint saw, its failed attempts."""

    response: Mapping[str, Any]
    requests: Sequence[Request]
    attempts: Sequence[Mapping[str, Any]]

    @property
    def outcome(self) -> tuple[str, str | None]:
        return self.response["outcome"], self.response["error"]

    @property
    def message(self) -> str:
        return self.response["message"] or ""

    @property
    def reply(self) -> str | None:
        return self.response["reply"]

    def failed(self, error: str, requests: int, says: str) -> bool:
        """Whether the row was given up like this: one key for all requests, each attempt on record, nothing decoded."""
        assert self.outcome == ("failed", error), self.response
        assert len(self.requests) == self.response["attempts"] == len(self.attempts) == requests
        assert len({request.key for request in self.requests}) == 1
        assert {attempt["error"] for attempt in self.attempts} == {error}
        assert says in self.message, self.message
        return True

    def refused(self, error: str, says: str) -> bool:
        """Whether the endpoint's no was taken for its word on the row: one request, and the reason on record."""
        assert self.outcome == ("rejected_by_model", error), self.response
        assert len(self.requests) == self.response["attempts"] == 1
        assert says in self.message, self.message
        return True


@dataclass(frozen=True)
class Misbehaved:
    """A whole run. `fine` are the rows without a fault."""

    report: SliceReport
    rows: Mapping[str, Seen]
    fine: Sequence[Seen]

    def __getitem__(self, fault: str) -> Seen:
        return self.rows[fault]


def misbehave(
    root: Path,
    faults: Mapping[str, Reply | Sequence[Reply]],
    settings: Settings = Settings(),  # noqa: B008  # frozen
    **model_keys: Any,
) -> Misbehaved:
    """Ask for every fault once, and for two fine rows beside each. A sequence is answered in turn, its last for ever.

    `model_keys` are of the manifest. The slice is first left uncommitted, so that its failed attempts can be read, then
    committed without another request.
    """
    with FakeModel() as model:
        model.answer = lambda request: _reply(faults, request, model.requests)
        bench = Bench(root, model.url, settings=settings)
        bench.load(
            [text for at, name in enumerate(faults) for text in (f"{FINE} {2 * at}", name, f"{FINE} {2 * at + 1}")]
        )
        bench.model(**{"max_attempts": MOST_ATTEMPTS, "max_concurrency": 1, "timeout_s": 60.0, **model_keys})
        bench.run = replace(bench.run, max_failed_share=0.0)
        report = bench.one()
        assert report.failure is not None, "at least one row fails, or nothing was learnt"
        assert bench.responses() == {}
        attempts = bench.attempts()
        bench.run = replace(bench.run, max_failed_share=1.0)
        assert bench.one(CallOptions(retry="none")).calls == 0
        responses = list(bench.responses().values())
        seen = [_seen(text, r, model.requests, attempts) for text, r in zip(bench.texts, responses, strict=True)]
    by_text = dict(zip(bench.texts, seen, strict=True))
    fine = [seen for text, seen in by_text.items() if text.startswith(FINE)]
    return Misbehaved(report, {name: by_text[name] for name in faults}, fine)


def _reply(faults: Mapping[str, Reply | Sequence[Reply]], request: Request, requests: Sequence[Request]) -> Reply:
    if request.text.startswith(FINE):
        return CAT
    fault = faults[request.text]
    if isinstance(fault, Reply):
        return fault
    asked_before = sum(1 for earlier in requests if earlier.text == request.text) - 1
    return fault[min(asked_before, len(fault) - 1)]


def _seen(
    text: str, response: Mapping[str, Any], requests: Sequence[Request], attempts: Sequence[Mapping[str, Any]]
) -> Seen:
    of_row = [request for request in requests if request.text == text and request.key == response["call_id"]]
    return Seen(response, of_row, [one for one in attempts if one["call_id"] == response["call_id"]])
