"""Whose fault failures are: the row's, or the endpoint's. And what waits until the endpoint has answered once.

A failure that may be the row's is charged to it, and taken back when a canary proves an outage. A failure that looks
like an outage is only suspected, and charged when the endpoint turns out to be fine. So an outage gives up no healthy
row, and a row that always fails ends, whatever it does to the endpoint.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from foundry_pipeline.calls.ledger import Answer, Ledger
from foundry_pipeline.calls.verdicts import Verdict
from foundry_pipeline.data_rows import DataRow

SAME_FAULT_ROWS = 5
"""So many distinct rows with the same fault, and no answer ever, mean that the endpoint takes nothing."""
MOST_REFUNDS = 3
"""A row that has brought the endpoint down so often is not asked again, however healthy it may look."""
CONTRADICTIONS = 3
"""An outage that only one row sees, times `max_attempts`, is that row's."""
LIMITS_IN_ROW = 4
"""So many rate limits for a row while no row is answered are worth a canary; so many answered canaries, a verdict."""


@dataclass(slots=True)
class LimitsMet:
    """Rate limits that one row has met in a row while no row was answered: `since` so many successes of the run.

    `alone` counts the canaries that were answered meanwhile, `canary_at` is the limit at which the next is sent. They
    come ever more rarely, so that they do not fall in step with an endpoint that takes every so-many-th request.
    """

    since: int = 0
    count: int = 0
    canary_at: int = LIMITS_IN_ROW
    canaries: int = 0
    alone: int = 0


@dataclass(slots=True, eq=False)
class Task:
    """One call to be made; `settled` gets its Answer without the reply, which the ledger has."""

    row: DataRow
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
    limits: LimitsMet = field(default_factory=LimitsMet)
    refunds: int = 0
    waits: int = 0
    resends: Counter[str] = field(default_factory=Counter)
    closed_before: bool = False
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
        self._is_outage = False

    def success(self) -> None:
        """Some row was answered: what is charged so far stays charged."""
        self._successes += 1
        for task in self._troubled:
            task.streak = 0
        self._troubled = {task for task in self._troubled if task.suspected}

    def charge(self, task: Task, verdict: Verdict, status: int | None) -> bool:
        """Hold a failure against the row; True where its attempts are spent.

        What fails while an outage is known, since it was in flight when that began, is part of the outage.
        """
        if self._is_outage:
            self._note(task, verdict, status)
            return False
        code = verdict.code or "failed"
        if task.streak == 0:
            task.seen = self._successes
        task.charged += 1
        task.streak += 1
        task.resends[code] += 1
        self._note(task, verdict, status)
        return self.is_spent(task) or (verdict.resends is not None and task.resends[code] > verdict.resends)

    def suspect(self, task: Task, verdict: Verdict, status: int | None) -> None:
        """Note a failure that looks like an outage, unless one is known already."""
        if self._is_outage:
            return
        if task.suspected and self._successes > task.seen:
            task.contradicted += 1
        task.seen = self._successes
        task.suspected += 1
        self._note(task, verdict, status)

    def limit(self, task: Task) -> bool:
        """Note a rate limit, which is nobody's fault. True where the row has met some more of them in a row and no row
        was answered meanwhile: only a canary can tell a limit for all from a row that is too much for the endpoint."""
        if self._successes > task.limits.since:
            task.limits = LimitsMet(self._successes)
        limits = task.limits
        limits.count += 1
        if limits.count < limits.canary_at:
            return False
        limits.canaries += 1
        limits.canary_at += LIMITS_IN_ROW + limits.canaries
        return True

    def limit_alone(self, task: Task, verdict: Verdict, status: int | None) -> bool:
        """A canary was answered where the row met a limit. True where that was so often enough to blame the row."""
        task.limits.alone += 1
        self._note(task, verdict, status)
        return task.limits.alone >= LIMITS_IN_ROW

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
        self._is_outage = True
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

    def resume(self) -> None:
        """Requests go again: what fails from now on counts."""
        self._is_outage = False

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


class Tried:
    """Rows of an endpoint that has not answered yet: a few that are tried again, and all others, which wait for them.

    Sending every row to an endpoint that fails would cost as many requests as there are rows, and more, before it is
    clear that it takes none.
    """

    def __init__(self) -> None:
        self._again: set[Task] = set()
        self._waiting: list[Task] = []

    def add(self, task: Task) -> None:
        """The task has failed and will be sent again."""
        self._again.add(task)

    def keeps_back(self, task: Task) -> bool:
        """True where the task has to wait; it is then kept here."""
        if len(self._again) < SAME_FAULT_ROWS or task in self._again:
            return False
        self._waiting.append(task)
        return True

    def done(self, task: Task) -> list[Task]:
        """The task is not sent again. Gives the tasks that are next."""
        self._again.discard(task)
        return self._take(max(0, SAME_FAULT_ROWS - len(self._again)))

    def release_all(self) -> list[Task]:
        """The endpoint has answered: gives all tasks that waited."""
        self._again.clear()
        return self._take(len(self._waiting))

    def _take(self, count: int) -> list[Task]:
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken
