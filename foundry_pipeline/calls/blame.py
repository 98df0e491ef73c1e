"""Whose fault failures are: the row's, or the endpoint's. And verdicts that wait until the endpoint has answered once.

A failure that may be the row's is charged to it, and taken back when a canary proves an outage. A failure that looks
like an outage is only suspected, and charged when the endpoint turns out to be fine. So an outage gives up no healthy
row, and a row that always fails ends, whatever it does to the endpoint.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from foundry_pipeline.asks import Ask
from foundry_pipeline.calls.ledger import Answer, Ledger
from foundry_pipeline.calls.verdicts import Verdict

SAME_FAULT_ROWS = 5
"""So many distinct rows with the same fault, and no answer ever, mean that the endpoint takes nothing."""
MOST_REFUNDS = 3
"""A row that has brought the endpoint down so often is not asked again, however healthy it may look."""
CONTRADICTIONS = 3
"""An outage that only one row sees, times `max_attempts`, is that row's."""


@dataclass(slots=True, eq=False)
class Task:
    """One call to be made; `settled` gets its Answer without the reply, which the ledger has."""

    ask: Ask
    call_id: str
    ledger: Ledger
    settled: asyncio.Future[Answer]
    landing: asyncio.Future[None] | None = None
    """The writing of its answer, once there is one."""
    sends: int = 0
    charged: int = 0
    """Failures held against the row."""
    streak: int = 0
    """Of `charged`: those that a proven outage takes back."""
    suspected: int = 0
    """Failures that a proven healthy endpoint puts on the row."""
    contradicted: int = 0
    """Outages that others did not see: something succeeded between two of them."""
    refunds: int = 0
    waits: int = 0
    resends: Counter[str] = field(default_factory=Counter)
    stale_before: bool = False
    fault: Verdict | None = None
    fault_status: int | None = None
    reply: bytes | None = field(default=None, repr=False)
    """The body of the last 200 that was no answer."""
    seen: int = 0
    """Successes of the run when the row's present trouble began."""


class Blame:
    """The charges of all open tasks of a run."""

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._successes = 0
        self._troubled: set[Task] = set()

    def success(self) -> None:
        """Some row was answered: what is charged so far stays charged."""
        self._successes += 1
        for task in self._troubled:
            task.streak = 0
        self._troubled = {task for task in self._troubled if task.suspected}

    def charge(self, task: Task, verdict: Verdict, status: int | None) -> bool:
        """Hold a failure against the row; True where its attempts are spent."""
        code = verdict.code or "failed"
        if task.streak == 0:
            task.seen = self._successes
        task.charged += 1
        task.streak += 1
        task.resends[code] += 1
        self._note(task, verdict, status)
        return self.is_spent(task) or (verdict.resends is not None and task.resends[code] > verdict.resends)

    def suspect(self, task: Task, verdict: Verdict, status: int | None) -> None:
        """Note a failure that looks like an outage."""
        if task.suspected and self._successes > task.seen:
            task.contradicted += 1
        task.seen = self._successes
        task.suspected += 1
        self._note(task, verdict, status)

    def _note(self, task: Task, verdict: Verdict, status: int | None) -> None:
        task.fault, task.fault_status = verdict, status
        self._troubled.add(task)

    def is_spent(self, task: Task) -> bool:
        """True where the row has no attempt left."""
        return task.charged >= self._max_attempts

    def is_contradicted(self, task: Task) -> bool:
        """True where the row alone has seen outages often enough."""
        return task.contradicted >= CONTRADICTIONS * self._max_attempts

    def is_proven(self, task: Task) -> bool:
        """True where no canary is needed to blame the row."""
        return self._successes > task.seen or task.refunds >= MOST_REFUNDS or self.is_contradicted(task)

    def verdict_on(self, task: Task) -> Answer:
        """The answer of a row that is given up: its last failure."""
        assert task.fault is not None
        return Answer(
            task.call_id,
            "failed",
            http_status=task.fault_status,
            reply=task.reply,
            error=task.fault.code,
            message=task.fault.message,
        )

    def endpoint(self) -> None:
        """A canary failed: it is an outage, and no row is charged for it."""
        for task in self._troubled:
            if task.streak:
                task.refunds += 1
            task.charged -= task.streak
            task.streak = task.suspected = 0
            task.resends.clear()
        self._troubled.clear()

    def rows(self) -> None:
        """A canary was answered: the endpoint is fine, the failures are the rows'."""
        for task in self._troubled:
            task.charged += task.suspected
            task.streak = task.suspected = 0
        self._troubled.clear()

    def forget(self, task: Task) -> None:
        """The task is settled."""
        self._troubled.discard(task)


class HeldBack:
    """Verdicts on rows of an endpoint that has not answered yet."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Task, Answer]] = []
        self._rows: defaultdict[str | None, int] = defaultdict(int)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, task: Task, answer: Answer) -> int | None:
        """Hold a verdict. Gives the number of rows with the same fault once it is the endpoint's, else None."""
        self._waiting.append((task, answer))
        self._rows[answer.error] += 1
        rows = self._rows[answer.error]
        return rows if rows >= SAME_FAULT_ROWS else None

    def release(self) -> list[tuple[Task, Answer]]:
        """The verdicts, to be settled: no other row is left that could show a working endpoint. Counts go on."""
        released, self._waiting = self._waiting, []
        return released

    def clear(self) -> list[tuple[Task, Answer]]:
        """The verdicts, to be settled: the endpoint has answered, so they are the rows' own."""
        self._rows.clear()
        return self.release()

    def take(self) -> Iterator[Task]:
        """The tasks whose verdicts are dropped."""
        return (task for task, _ in self.release())
