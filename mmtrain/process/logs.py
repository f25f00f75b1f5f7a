"""The one set-up of logging: what stands on stderr, and a run's log.txt of all its ranks.

Modules have `logger = logging.getLogger(__name__)` and nothing else. A rank's records go to the
driver, which writes them to the run's log and shows them as if they were its own: what several
ranks say alike stands on stderr once.
"""

import logging
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Literal, Self

from mmtrain.process.line_file import LineFile

Loudness = Literal["quiet", "normal", "verbose"]

OURS = ("mmtrain", "pipelines")
# The least level that stands on stderr: of this project, of others
SHOWN: dict[Loudness, tuple[int, int]] = {
    "quiet": (logging.ERROR, logging.CRITICAL),
    "normal": (logging.WARNING, logging.ERROR),
    "verbose": (logging.INFO, logging.WARNING),
}
CHATTY = ("mlflow", "alembic", "ray", "deepspeed", "DeepSpeed")
_MAX_KNOWN = 1000  # messages of ranks that are remembered


def set_up(loudness: Loudness = "normal") -> None:
    """Makes this process show its log on stderr, a line each; again: with another loudness."""
    _stderr.loudness = loudness
    logging.getLogger().addHandler(_stderr)
    _level_ours()
    hush(*CHATTY, level=logging.WARNING)


def is_quiet() -> bool:
    """Whether only errors and results are to be shown, and no progress."""
    return _stderr.loudness == "quiet"


def hush(*names: str, level: int = logging.ERROR) -> None:
    """Raises the level of loggers of libraries. Call it after their import, which sets their own.

    Args:
        names: of loggers; those below them follow.
        level: the least that they still log; with --verbose that is a warning.
    """
    for name in names:
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING if _stderr.loudness == "verbose" else level)


@contextmanager
def relayed(send: Callable[[logging.LogRecord], object], *, rank: int) -> Generator[None]:
    """Within, what this process logs goes to the driver of its run, Python's warnings too.

    Args:
        send: takes a record that can be pickled, without waiting; `LogFile.take` is to get it.
        rank: of this process, noted in each record.
    """
    root, relay = logging.getLogger(), _Relay(send, rank)
    root.addHandler(relay)
    _level_ours()
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(relay)


class LogFile(logging.Handler):
    """A run's log.txt while it is open: lines of this process and of the ranks.

    A line has its time, rank, level and logger. What is there stays; a disk that is full stops
    nothing, see `LineFile`.

    Args:
        path: the file, which no other process writes.
        who: what this process is, e.g. "driver".
    """

    def __init__(self, path: Path, *, who: str = "driver") -> None:
        super().__init__()
        self._lines = LineFile(path)
        head = "%(asctime)s.%(msecs)03dZ %(who)s %(levelname)s %(name)s: %(message)s"
        self.formatter = logging.Formatter(head, "%Y-%m-%dT%H:%M:%S", defaults={"who": who})
        self.formatter.converter = time.gmtime
        self.addFilter(lambda record: not hasattr(record, "is_written"))

    def take(self, record: logging.LogRecord) -> None:
        """Writes a rank's record, then shows it as this process shows its own."""
        self.handle(record)
        record.is_written = True
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Adds its line; of a message of several lines, as many."""
        first, *others = self.format(record).splitlines()
        head = first.partition(f" {record.name}: ")[0]
        for line in (first, *(f"{head} {record.name}: {other}" for other in others)):
            self._lines.write(line)

    def __enter__(self) -> Self:
        root = logging.getLogger()
        # A program that has configured nothing still sees warnings, as without this handler
        self._others = [logging.lastResort] if logging.lastResort and not root.handlers else []
        for handler in (self, *self._others):
            root.addHandler(handler)
        return self

    def __exit__(self, *_: object) -> None:
        for handler in (self, *self._others):
            logging.getLogger().removeHandler(handler)
        self._lines.close()
        self.close()


class _Relay(QueueHandler):
    """Hands records on, each with its rank."""

    def __init__(self, send: Callable[[logging.LogRecord], object], rank: int) -> None:
        super().__init__(queue=None)  # type: ignore[arg-type]  # what it is for, `enqueue` replaces
        self._send, self._rank = send, rank

    def enqueue(self, record: logging.LogRecord) -> None:
        """Sends a record whose arguments and traceback are text by now."""
        record.who = f"rank {self._rank}"
        self._send(record)


class _Stderr(logging.Handler):
    """Shows what is loud enough, once: not what another rank, or the driver, has said alike."""

    loudness: Loudness = "normal"

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[tuple[str, str], str] = {}  # who said it

    def filter(self, record: logging.LogRecord) -> bool:
        ours, others = SHOWN[self.loudness]
        if record.levelno < (ours if record.name.split(".")[0] in OURS else others):
            return False
        if len(self._first) >= _MAX_KNOWN:
            self._first.clear()
        who = getattr(record, "who", "driver")
        return self._first.setdefault((record.name, record.getMessage()), who) == who

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {self.format(record)}", file=sys.stderr, flush=True)


def _level_ours() -> None:
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)


_stderr = _Stderr()
