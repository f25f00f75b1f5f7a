"""Waits of tests: they end by a condition, and their bounds are for what never comes.

What takes a second on a quiet machine takes a minute beside 15 other processes on 2 cores.
"""

import asyncio
import time
from collections.abc import Callable

BUSY_S = 300  # longest wait for what must come
GROUP_S = 560  # likewise for all jobs of a group of ranks; a test has 600 s
SOON_S = 60  # by when is there what takes no time; MLflow's own retries take over 100 s


def wait_until(holds: Callable[[], object], *, every_s: float = 0.05) -> None:
    """Returns when the condition holds; an assertion fails if that takes longer than `BUSY_S`."""
    ends_s = time.monotonic() + BUSY_S
    while not holds():
        assert time.monotonic() < ends_s, f"it did not hold within {BUSY_S} s"
        time.sleep(every_s)


async def until(holds: Callable[[], object]) -> None:
    """`wait_until` that lets other tasks of the loop run."""
    ends_s = time.monotonic() + BUSY_S
    while not holds():
        assert time.monotonic() < ends_s, f"it did not hold within {BUSY_S} s"
        await asyncio.sleep(0.001)
