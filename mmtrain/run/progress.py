"""What a person sees while a run works: a live table in a terminal, plain lines elsewhere.

The train loop hands on `RunProgress` values; drawing knows nothing of training.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import LogRecord
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mmtrain.process.logs import is_quiet


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """One task's line: steps taken, mean loss since the last report, speed over all ranks."""

    steps: int
    loss: float
    examples_per_s: float


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is. `elapsed_s` and `remaining_s` count from the loop's own start.

    `note` is what the user should know besides; empty: nothing.
    """

    step: int
    num_steps: int
    elapsed_s: float
    remaining_s: float
    tasks: Mapping[str, TaskProgress] = field(default_factory=dict)
    note: str = ""


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss.

    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_line(progress: RunProgress) -> str:
    """One plain line: step, times, then each task's loss."""
    losses = "  ".join(f"{name} {task.loss:.3f}" for name, task in progress.tasks.items())
    return (
        f"step {progress.step}/{progress.num_steps}  {clock(progress.elapsed_s)} elapsed, "
        f"{clock(progress.remaining_s)} remaining  {losses}"
        f"{'  ' * bool(progress.note)}{progress.note}"
    )


def progress_table(progress: RunProgress) -> RenderableType:
    """The live display: a line for each task under a bar for the run."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("task", style="cyan")
    for column in ("steps", "loss", "examples/s"):
        table.add_column(column, justify="right")
    for name, task in progress.tasks.items():
        table.add_row(name, f"{task.steps:,}", f"{task.loss:.3f}", f"{task.examples_per_s:,.0f}")
    headline = Text.assemble(
        (f"step {progress.step:,} of {progress.num_steps:,}", "bold"),
        f"   {clock(progress.elapsed_s)} elapsed, {clock(progress.remaining_s)} remaining",
    )
    bar = ProgressBar(total=max(1, progress.num_steps), completed=progress.step, width=60)
    note = [Text(progress.note, style="yellow")] if progress.note else []
    return Group(headline, bar, table, *note)


class ProgressBoard:
    """Holds the newest progress, and what ranks logged, until the driver looks; an actor."""

    def __init__(self) -> None:
        self._progress: RunProgress | None = None
        self._records: list[LogRecord] = []

    def write(self, progress: RunProgress) -> None:
        """Rank 0 posts."""
        self._progress = progress

    def log(self, record: LogRecord) -> None:
        """A rank logs."""
        self._records.append(record)

    def read(self) -> tuple[RunProgress | None, list[LogRecord]]:
        """The driver looks; it gets each record once."""
        records, self._records = self._records, []
        return self._progress, records

    def is_there(self) -> bool:
        """True: calls are answered in order, so what the caller told before has been taken."""
        return True


class PolledDisplay(ABC):
    """Looks in a thread at what is new and draws it, to the end; a context manager.

    Args:
        console: where to draw; a live table if it is a terminal, else lines.
        poll_every_s: seconds between looks.
    """

    def __init__(self, *, console: Console, poll_every_s: float) -> None:
        self._console = Console(quiet=True) if is_quiet() else console
        self._poll_every_s = poll_every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)

    @abstractmethod
    def table(self) -> RenderableType | None:
        """What a terminal shows now; None: nothing new."""

    @abstractmethod
    def print_news(self, *, last: bool) -> None:
        """Prints the lines that are due where there is no terminal."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=10)

    def _draw(self) -> None:
        if not self._console.is_terminal:
            while not self._stopped.wait(self._poll_every_s):
                self.print_news(last=False)
            self.print_news(last=True)
            return
        with Live(console=self._console, refresh_per_second=4) as live:
            while not self._stopped.wait(self._poll_every_s):
                self._refresh(live)
            self._refresh(live)

    def _refresh(self, live: Live) -> None:
        if (table := self.table()) is not None:
            live.update(table)


class ProgressDisplay(PolledDisplay):
    """How far a run is.

    Args:
        latest: gives the newest progress, or None when there is none yet.
        console: where to draw; a live table if it is a terminal, else a line each `line_every_s`.
    """

    def __init__(
        self,
        latest: Callable[[], RunProgress | None],
        *,
        console: Console,
        line_every_s: float = 15.0,
        poll_every_s: float = 0.5,
    ) -> None:
        super().__init__(console=console, poll_every_s=poll_every_s)
        self._latest, self._line_every_s = latest, line_every_s
        self._last_line: tuple[float, int] = (float("-inf"), -1)  # when, which step

    def table(self) -> RenderableType | None:
        """All tasks of the run."""
        progress = self._latest()
        return None if progress is None else progress_table(progress)

    def print_news(self, *, last: bool) -> None:
        """One line, not too often."""
        progress, (when, step) = self._latest(), self._last_line
        wait_s = 0 if last else self._line_every_s
        if progress is None or progress.step == step or time.monotonic() - when < wait_s:
            return
        self._last_line = (time.monotonic(), progress.step)
        self._console.print(progress_line(progress), highlight=False, soft_wrap=True)


@contextmanager
def build_display(console: Console) -> Generator[Callable[[str, int, int], None]]:
    """A bar for each task that is built; yields what is told (task, shards done, shards in all).

    Where there is no terminal, a line when a task is done.
    """
    console = Console(quiet=True) if is_quiet() else console
    if not console.is_terminal:
        yield (
            lambda task, done, total: (
                console.print(f"built {task}", highlight=False) if done == total else None
            )
        )
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        rows: dict[str, TaskID] = {}

        def told(task: str, done: int, total: int) -> None:
            if task not in rows:
                rows[task] = bars.add_task(task, total=total)
            bars.update(rows[task], completed=done)

        yield told
