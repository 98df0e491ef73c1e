"""What only PostgreSQL has beside the ledger's own tables: leases of slices, states of endpoints, costs of runs."""

from __future__ import annotations

import sqlalchemy as sa

from foundry_pipeline.calls.endpoint_state import EndpointState

METADATA = sa.MetaData()
TOKENS = sa.Sequence("lease_tokens", metadata=METADATA)
LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("slice", sa.Text, primary_key=True),
    sa.Column("token", sa.BigInteger, nullable=False, comment="never given twice: who has an older one has lost"),
    sa.Column("last_commit", sa.BigInteger, nullable=False, comment="number of the holder's last commit"),
    sa.Column(
        "claim", sa.Text, nullable=False, comment="the holder's process on its machine, and its try to take this"
    ),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("since", sa.DateTime(timezone=True), nullable=False),
    sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
)
SPENT = sa.Table(
    "spent",
    METADATA,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("calls", sa.BigInteger, nullable=False),
    sa.Column("billionths", sa.Numeric(40, 0), nullable=False, comment="of the unit that the run's price is in"),
)
ENDPOINTS = sa.Table(
    "endpoints",
    METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False, comment="counts changes of all but next_free"),
    *(
        sa.Column(name, sa.Double, nullable=False, comment="see calls/endpoint_state.py; times are the server's, UTC")
        for name in EndpointState._fields
    ),
)
