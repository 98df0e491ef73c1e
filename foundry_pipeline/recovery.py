"""What lies in the ledgers, and what of it can be finished without a call.

Owns the comparison of ledgers with tables and the order of recovery; the ledgers themselves are `calls/ledgers.py`.
Nothing that is paid for is deleted: a ledger goes when every answer in it is in a committed file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from foundry_pipeline.calls.lease import Lease
from foundry_pipeline.calls.ledger import Answer, Ledger
from foundry_pipeline.calls.ledgers import Ledgers
from foundry_pipeline.calls.pending import Pending
from foundry_pipeline.calls.plan import GOOD
from foundry_pipeline.calls.slice_work import COMMITTED, CallOptions, SliceWork, commit_slice, plan_slice
from foundry_pipeline.calls.tally import Tally
from foundry_pipeline.errors import SliceBusy, StorageError
from foundry_pipeline.home import Run
from foundry_pipeline.protocols.foundry import FoundryRequests
from foundry_pipeline.store import Store, reading
from foundry_pipeline.tables import TableSpec

COMPARED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done about one slice, or why nothing could be; `done` is False where a person should look."""

    run: str
    slice_key: str
    words: str
    done: bool = True


def waiting_answers(pending: Pending, ledgers: Ledgers, store: Store) -> int:
    """How many of a slice's answers are in no committed file yet."""
    if pending.damage is not None or sum(pending.outcomes.values()) == pending.in_spare:
        return pending.in_spare
    ledger = ledgers.ledger(pending.run, pending.slice_key, None)
    try:
        outcomes = ledger.outcomes()
    finally:
        ledger.close()
    committed = _committed_outcomes(store, pending.run, pending.slice_key)
    waiting = sum(1 for call_id, outcome in outcomes.items() if not _is_covered(outcome, committed.get(call_id)))
    return waiting + pending.in_spare


def recover(
    runs: Mapping[str, Run], store: Store, ledgers: Ledgers, run: str | None = None, slice_key: str | None = None
) -> Iterator[Recovered]:
    """Finish what can be, for one run or slice, or for all, and say what was done. Raises StorageError where the
    ledgers or the warehouse as a whole cannot be had; what is wrong with one slice is in its Recovered."""
    interrupted = store.unfinished()
    store.recover()
    for owner, key in interrupted:
        yield Recovered(owner, key, "a commit that was interrupted after its commit point is finished")
    ledgers.open()
    for pending in select(ledgers.pending(), run, slice_key):
        yield from _recovered(runs.get(pending.run), pending, store, ledgers)


def select(pending: Sequence[Pending], run: str | None, slice_key: str | None) -> list[Pending]:
    """Those of one run or slice; None is any."""
    return [p for p in pending if run in (None, p.run) and slice_key in (None, p.slice_key)]


def _recovered(run: Run | None, pending: Pending, store: Store, ledgers: Ledgers) -> Iterator[Recovered]:
    name, key = pending.run, pending.slice_key
    try:
        lease = ledgers.lease(name, key)
    except SliceBusy as err:
        yield Recovered(name, key, f"left alone: {err}")
        return
    try:
        for saved in ledgers.repair(name, key):
            yield Recovered(
                name,
                key,
                f"damaged: {saved.answers} answers and {saved.attempts} failed attempts could be read and are in a new "
                f"ledger, {saved.refused} were not what had been written; the damaged file is {saved.kept_aside}",
            )
        yield _finished(run, name, key, store, ledgers, lease)
    except (StorageError, SliceBusy) as err:
        yield Recovered(name, key, str(err), done=False)
    finally:
        lease.release()


def _finished(run: Run | None, name: str, slice_key: str, store: Store, ledgers: Ledgers, lease: Lease) -> Recovered:
    words, done = _forget_durable(name, slice_key, store, ledgers, lease)
    if words is None and run is not None:
        words, done = _commit_complete(run, slice_key, store, ledgers, lease)
    elif words is None:
        words, done = f"its answers stay: there is no sound run {name!r} in this home", False
    return Recovered(name, slice_key, words, done)


def _forget_durable(name: str, slice_key: str, store: Store, ledgers: Ledgers, lease: Lease) -> tuple[str | None, bool]:
    """Drop answers that are in the committed file, and the ledger with the last of them. None where others are left."""
    ledger = ledgers.ledger(name, slice_key, lease)
    try:
        outcomes = ledger.outcomes()
        durable = set(_durable(name, slice_key, store, ledger, outcomes))
        ledger.forget(durable)
        if len(durable) < len(outcomes):
            return None, True
        if not durable and ledger.unknown:
            return f"no answers: {len(ledger.unknown)} calls whose outcome nobody knows; a run asks them again", True
        ledger.remove()
        return (f"removed: its {len(durable)} answers are in tables" if durable else "removed: it was empty"), True
    finally:
        ledger.close()


def _durable(name: str, slice_key: str, store: Store, ledger: Ledger, outcomes: Mapping[str, str]) -> Iterator[str]:
    """Call ids of the answers that a committed file has, byte by byte, or has a better one for; some come twice."""
    for spec in COMMITTED:
        yield from _durable_in(spec, name, slice_key, store, ledger, outcomes)


def _durable_in(
    spec: TableSpec, name: str, slice_key: str, store: Store, ledger: Ledger, outcomes: Mapping[str, str]
) -> Iterator[str]:
    file = store.open(spec, name, slice_key)
    if file is None:
        return
    store.check_intact(spec, name, slice_key)
    with file, reading(store.path(spec, name, slice_key)):
        for batch in file.iter_batches(COMPARED_AT_ONCE, columns=["call_id", "outcome", "reply"]):
            committed = {row["call_id"]: row for row in pa.Table.from_batches([batch]).to_pylist()}
            answers = ledger.answers(committed.keys() & outcomes.keys())
            yield from (call_id for call_id, answer in answers.items() if _same(answer, committed[call_id]))


def _same(answer: Answer, committed: Mapping[str, str | None]) -> bool:
    reply = None if answer.reply is None else answer.reply.decode("utf-8", "replace")
    if answer.outcome == committed["outcome"]:
        return reply == committed["reply"]
    return _is_covered(answer.outcome, committed["outcome"])


def _is_covered(outcome: str, committed: str | None) -> bool:
    """A refresh that failed leaves the good answer in place."""
    return committed == outcome or (committed in GOOD and outcome not in GOOD)


def _commit_complete(run: Run, slice_key: str, store: Store, ledgers: Ledgers, lease: Lease) -> tuple[str, bool]:
    """Commit the slice where every row has an outcome, as its run would have.

    Conversations that are continued are left to their run: what comes next is asked with what the model said last.
    """
    if run.generate:
        return f"its answers are kept here: materialize {run.name}, which asks only what was not answered", True
    work = plan_slice(
        run,
        slice_key,
        store,
        lambda: ledgers.ledger(run.name, slice_key, lease),
        FoundryRequests(run),
        CallOptions(retry="none"),
    )
    try:
        return _committed(work, lease)
    finally:
        work.close()


def _committed(work: SliceWork, lease: Lease) -> tuple[str, bool]:
    """Commit a planned slice, unless a row has no outcome or too many have failed."""
    run, plan = work.run, work.plan
    if plan.needs_call.any():
        answered = f"{work.reused} of {len(plan)} rows have their answer"
        return f"{answered}, kept here: materialize {run.name} and only the others are asked", True
    if (failure := Tally(outcomes=plan.outcomes()).too_many_failed(run.max_failed_share)) is not None:
        return failure, True
    tally, _ = commit_slice(work, {"calls": 0, "reused": work.reused}, lease.check)
    work.close_committed()
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(tally.outcomes.items()))
    return f"committed to responses: {counts}; materialize {run.name} to decode it, without a call", True


def _committed_outcomes(store: Store, run: str, slice_key: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for spec in COMMITTED:
        with contextlib.suppress(StorageError):
            table = store.read(spec, run, slice_key, ["call_id", "outcome"])
            if table is not None:
                found |= zip(table["call_id"].to_pylist(), table["outcome"].to_pylist(), strict=True)
    return found
