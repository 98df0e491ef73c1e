"""Times in messages for people, always in UTC: who reads them may be anywhere."""

from __future__ import annotations

import time


def clock_time(at: float) -> str:
    """Seconds of the UTC epoch as `12:03:07 UTC`, with the date where it is not today's."""
    moment, today = time.gmtime(at), time.gmtime()
    date = "" if moment[:3] == today[:3] else time.strftime("%Y-%m-%d ", moment)
    return f"{date}{time.strftime('%H:%M:%S', moment)} UTC"
