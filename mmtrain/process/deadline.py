"""Calls that end at a time on the clock, whatever is at the other side.

The time limits of network libraries bound each read: a server that sends a byte a second passes
them all. Here a call runs in a thread of its own, which is left behind at the bound; what it still
brings is thrown away.
"""

import contextvars
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import NoReturn, TypeVar

T = TypeVar("T")

LEAST_BYTES_PER_S = 2**16  # of a transfer that is not given up
_MAX_LEFT = 16  # threads left behind; with so many, what is called has to be let go first
_left: list[threading.Thread] = []


class DeadlineError(TimeoutError):
    """A call did not end in time."""


def within(
    seconds: float, call: Callable[[], T], *, progress: Callable[[], int] | None = None
) -> T:
    """The call's result, or its error.

    Args:
        seconds: longest wait for it.
        call: waits for something out of our hands; may be cut off from its effects at any point.
        progress: bytes that have come so far; while they grow by `LEAST_BYTES_PER_S`, the wait
            begins anew. None: there is one wait.

    Raises:
        DeadlineError: it has not ended in time, or too many calls before it have not ended yet.
    """
    if num_left_behind() >= _MAX_LEFT:
        raise DeadlineError(f"{_MAX_LEFT} calls before this one have not ended yet")
    result: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result.set_result(context.run(call))
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, name="bounded", daemon=True)
    thread.start()
    num_bytes = 0
    while not wait((result,), timeout=seconds).done:
        before, num_bytes = num_bytes, progress() if progress else 0
        if num_bytes - before < seconds * LEAST_BYTES_PER_S:
            _left.append(thread)
            raise DeadlineError(f"no answer within {seconds:g} s")
    return result.result()


def num_left_behind() -> int:
    """Calls that were given up and have not ended yet."""
    _left[:] = [thread for thread in _left if thread.is_alive()]
    return len(_left)


def leave(status: str | int | None) -> NoReturn:
    """Ends a program, as `sys.exit` does; one that left calls behind, at once: the interpreter
    would wait for the pools of threads that libraries made for them.
    """
    if num_left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))
    sys.exit(status)
