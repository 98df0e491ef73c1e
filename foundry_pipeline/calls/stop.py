"""The end of sending: one error, set once, that wakes everybody who sleeps before a request."""

from __future__ import annotations

import asyncio


class Stop:
    """Make it in the event loop that uses it."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._event = asyncio.Event()

    def set(self, error: BaseException) -> None:
        """Stop; the first error stays."""
        if self.error is None:
            self.error = error
        self._event.set()

    def check(self) -> None:
        """Raise the error where there is one."""
        if self.error is not None:
            raise self.error

    async def sleep(self, seconds: float) -> None:
        """Sleep, or raise the error as soon as there is one."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return
        self.check()
