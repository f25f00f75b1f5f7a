"""What a person sees while a sweep works: a line for each trial; plain lines where no terminal is.

Drawing knows records and steps, nothing of Ray.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mmtrain.run.progress import PolledDisplay, clock
from mmtrain.tuning.trials import State, TrialRecord

_COLOURS: Mapping[State, str] = {
    "running": "cyan", "finished": "green", "stopped": "dim", "failed": "red", "lost": "red"
}  # fmt: skip
_MOST_LINES = 24  # trials shown at once, the newest


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """How far a sweep is.

    Args:
        records: of the trials that have begun, by number.
        steps: newest step of trials that run now, by number.
        num_trials: of the whole sweep.
        elapsed_s: since this call began.
    """

    records: Sequence[TrialRecord]
    steps: Mapping[int, int]
    num_trials: int
    elapsed_s: float

    @property
    def num_ended(self) -> int:
        """Trials that are over."""
        return sum(record.has_ended for record in self.records)


class SweepBoard:
    """Which number each of Tune's trials has, and how far they are; an actor."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._steps: dict[int, int] = {}

    def number_of(self, identity: str, number: int) -> int:
        """The number of a trial: the first that it said. A copied config holds another's."""
        return self._numbers.setdefault(identity, number)

    def numbers(self) -> dict[str, int]:
        """Of all trials that have begun, by Tune's name."""
        return self._numbers

    def write(self, number: int, step: int) -> None:
        """A trial posts."""
        self._steps[number] = step

    def read(self) -> dict[int, int]:
        """The driver looks."""
        return self._steps


def shown_values(record: TrialRecord) -> str:
    """A trial's values in a line, fields by their last two names."""
    pairs = (
        (".".join(field.split(".")[-2:]), f"{value:.4g}" if isinstance(value, float) else value)
        for field, value in record.values.items()
    )
    return "  ".join(f"{field} {value}" for field, value in pairs)


def trial_line(record: TrialRecord, *, step: int | None = None) -> str:
    """One plain line of a trial."""
    score = "" if record.score is None else f"  score {record.score:.3f}"
    reached = record.step if step is None else max(step, record.step)
    line = f"trial {record.number:3}  {record.state}  step {reached}/{record.num_steps}{score}"
    return f"{line}  {shown_values(record)}{'  ' + record.message if record.message else ''}"


def sweep_table(progress: SweepProgress) -> RenderableType:
    """The live display: a line for each trial under a line for the sweep."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("trial", justify="right", style="cyan")
    table.add_column("state")
    for column in ("step", "score"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("values", overflow="fold")
    for record in progress.records[-_MOST_LINES:]:
        step = max(progress.steps.get(record.number, 0), record.step)
        table.add_row(
            str(record.number),
            Text(record.state, style=_COLOURS[record.state]),
            f"{step:,}/{record.num_steps:,}",
            "" if record.score is None else f"{record.score:.3f}",
            Text(record.message or shown_values(record)),
        )
    headline = Text.assemble(
        (f"{progress.num_ended} of {progress.num_trials} trials over", "bold"),
        f"   {clock(progress.elapsed_s)} elapsed",
    )
    return Group(headline, table)


class SweepDisplay(PolledDisplay):
    """How far a sweep is.

    Args:
        latest: how far the sweep is.
        console: a live table if it is a terminal, else a line when a trial's state changes.
        poll_every_s: seconds between looks.
    """

    def __init__(
        self, latest: Callable[[], SweepProgress], *, console: Console, poll_every_s: float = 1.0
    ) -> None:
        super().__init__(console=console, poll_every_s=poll_every_s)
        self._latest = latest
        self._told: dict[int, tuple[State, int]] = {
            record.number: (record.state, record.step) for record in latest().records
        }

    def table(self) -> RenderableType:
        """All trials."""
        return sweep_table(self._latest())

    def print_news(self, *, last: bool) -> None:
        """A line for each trial that is in another state than before."""
        for record in self._latest().records:
            now = (record.state, record.step)
            if self._told.get(record.number) != now:
                self._told[record.number] = now
                self._console.print(
                    trial_line(record), highlight=False, markup=False, soft_wrap=True
                )


def outcome_lines(outcome: Any) -> list[str]:
    """What a sweep has found, and what to do next; of tasks alone, a line for each."""
    if hasattr(outcome, "by_task"):
        parts = [f"{task}: {_best_line(one)}" for task, one in outcome.by_task.items()]
        data = f"--references {outcome.out}"
        return [*parts, f"joint recipe in {outcome.best_recipe}",
                f"next: mmtrain train {outcome.best_recipe}; sweeps of it take {data}"]  # fmt: skip
    lines = [_best_line(outcome)]
    if len(outcome.front) > 1:
        front = ", ".join(str(number) for number in outcome.front)
        lines.append(f"front: trials {front}; the knee is trial {outcome.best.number}")
    return [
        *lines,
        f"report  {outcome.out / 'report.html'}",
        f"next: mmtrain train {outcome.best_recipe}",
    ]


def _best_line(outcome: Any) -> str:
    best: TrialRecord = outcome.best
    found = ", ".join(f"{name} {value:.4g}" for name, value in best.objectives.items())
    over = f"{len(outcome.records)} trials in {clock(outcome.seconds)}"
    return f"trial {best.number} of {over}: {found}  ({shown_values(best)})"
