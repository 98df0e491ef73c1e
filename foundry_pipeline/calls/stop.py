"""The end of sending: one error, set once, that wakes everybody who sleeps before a request."""

from __future__ import annotations

import asyncio


class Stop:
    """Make it in the event loop that uses it."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._sleepers: set[asyncio.Future[None]] = set()

    def set(self, error: BaseException) -> None:
        """Stop; the first error stays."""
        if self.error is None:
            self.error = error
        for sleeper in self._sleepers:
            _wake(sleeper)

    def check(self) -> None:
        """Raise the error where there is one."""
        if self.error is not None:
            raise self.error

    async def sleep(self, seconds: float) -> None:
        """Sleep, or raise the error as soon as there is one. Every call sleeps: asyncio's own way takes a task each."""
        self.check()
        loop = asyncio.get_running_loop()
        sleeper = loop.create_future()
        timer = loop.call_later(seconds, _wake, sleeper)
        self._sleepers.add(sleeper)
        try:
            await sleeper
        finally:
            timer.cancel()
            self._sleepers.discard(sleeper)
        self.check()


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
