"""SIGTERM ends a command as Ctrl-C does, in order; its exit status is 143.

Ray answers SIGTERM with a trace and an abort of the driver, so its handlers are replaced wherever
it has set them.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_STATUS = 128 + signal.SIGTERM
_terminated = threading.Event()


def interrupt_on_sigterm() -> None:
    """From now on SIGTERM raises what Ctrl-C raises, in the main thread."""
    if _in_main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def note_sigterm() -> None:
    """Somebody else's handler has taken a SIGTERM."""
    _terminated.set()


def was_terminated() -> bool:
    """Whether a SIGTERM came."""
    return _terminated.is_set()


def interruption() -> str:
    """What ended a command that did not end by itself, as its message begins."""
    return "terminated" if was_terminated() else "interrupted"


def exit_status(otherwise: int) -> int:
    """143 after a SIGTERM."""
    return _STATUS if was_terminated() else otherwise


@contextmanager
def handlers_kept() -> Generator[None]:
    """Sets the handlers of SIGINT and SIGTERM at the end as they were."""
    numbers = (signal.SIGINT, signal.SIGTERM) if _in_main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _terminated.set()
    signal.raise_signal(signal.SIGINT)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
