"""What a person sees while a sweep works: a line for each trial; plain lines where no terminal is.

Drawing knows the records and series in the sweep's folder, nothing of Ray.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from mmtrain.process.duration import duration
from mmtrain.run.progress import PolledDisplay, progress_view
from mmtrain.run.runlog import SERIES, read_series
from mmtrain.tuning.trials import (
    JointOutcome,
    State,
    SweepOutcome,
    TrialRecord,
    read_records,
    trial_folder,
)

_COLOURS: Mapping[State, str] = {
    "running": "cyan", "finished": "green", "stopped": "dim", "failed": "red", "lost": "red"
}  # fmt: skip
_MOST_LINES = 24  # trials shown at once, the newest


class SweepDisplay(PolledDisplay):
    """How far a sweep is: a live table in a terminal, else a line when a trial's state changes.

    Args:
        out: the sweep's folder.
        num_trials: of the whole sweep.
        console: where it is drawn.
        poll_every_s: seconds between looks.
    """

    def __init__(
        self, out: Path, *, num_trials: int, console: Console, poll_every_s: float = 1.0
    ) -> None:
        super().__init__(console=console, poll_every_s=poll_every_s)
        self._out, self._num_trials, self._began = out, num_trials, time.monotonic()
        self._printed = {record.number: record for record in read_records(out)}

    def table(self) -> RenderableType:
        """All trials."""
        records, elapsed_s = read_records(self._out), time.monotonic() - self._began
        steps = {one.number: newest_step(self._out, one) for one in records[-_MOST_LINES:]}
        return sweep_table(records, steps, num_trials=self._num_trials, elapsed_s=elapsed_s)

    def news(self, *, last: bool) -> Iterator[str]:
        """A line for each trial that is in another state, or at another step, than before."""
        for record in read_records(self._out):
            before = self._printed.get(record.number)
            self._printed[record.number] = record
            if before is None or (before.state, before.step) != (record.state, record.step):
                yield trial_line(record)


def newest_step(out: Path, record: TrialRecord) -> int:
    """The step that a trial has reached, by the newest line of its series where it runs."""
    if record.state != "running":
        return record.step
    series = read_series(trial_folder(out, record.number) / SERIES)
    return max(record.step, series[-1]["step"] if series else 0)


def shown_values(record: TrialRecord) -> str:
    """A trial's values in a line, fields by their last two names."""
    pairs = (
        (".".join(field.split(".")[-2:]), f"{value:.4g}" if isinstance(value, float) else value)
        for field, value in record.values.items()
    )
    return "  ".join(f"{field} {value}" for field, value in pairs)


def trial_line(record: TrialRecord) -> str:
    """One plain line of a trial."""
    score = "" if record.score is None else f"  score {record.score:.3f}"
    line = f"trial {record.number:3}  {record.state}  step {record.step}/{record.num_steps}{score}"
    return f"{line}  {shown_values(record)}{'  ' + record.message if record.message else ''}"


def sweep_table(
    records: Sequence[TrialRecord],
    steps: Mapping[int, int],
    *,
    num_trials: int,
    elapsed_s: float,
) -> RenderableType:
    """The live display: a line for each trial under a line for the sweep.

    Args:
        records: of the trials that have begun, by number.
        steps: that the newest of them have reached, by number.
        num_trials: of the whole sweep.
        elapsed_s: since this call began.
    """
    num_over = sum(record.has_ended for record in records)
    return progress_view(
        f"{num_over} of {num_trials} trials over",
        f"{duration(elapsed_s)} elapsed",
        columns={"trial": "right", "state": "left", "step": "right", "score": "right",
                 "values": "left"},
        rows=[
            (
                str(record.number),
                Text(record.state, style=_COLOURS[record.state]),
                f"{steps[record.number]:,}/{record.num_steps:,}",
                "" if record.score is None else f"{record.score:.3f}",
                Text(record.message or shown_values(record)),
            )
            for record in records[-_MOST_LINES:]
        ],
    )  # fmt: skip


def outcome_lines(outcome: SweepOutcome | JointOutcome) -> list[str]:
    """What a sweep has found, and what to do next; of tasks alone, a line for each."""
    train = f"next: mmtrain train {outcome.best_recipe}"
    if isinstance(outcome, JointOutcome):
        lines = [f"{task}: {_best_line(one)}" for task, one in outcome.tasks.items()]
        lines.append(f"joint recipe in {outcome.best_recipe}")
        return [*lines, f"{train}; sweeps of it take --references {outcome.out}"]
    lines = [_best_line(outcome)]
    if len(outcome.front) > 1:
        front = ", ".join(str(number) for number in outcome.front)
        lines.append(f"front: trials {front}; the knee is trial {outcome.best}")
    return [*lines, f"report  {outcome.out / 'report.html'}", train]


def _best_line(outcome: SweepOutcome) -> str:
    best = outcome.best_trial
    measured = ", ".join(f"{name} {value:.4g}" for name, value in best.objectives.items())
    over = f"{len(outcome.trials)} trials in {duration(outcome.seconds)}"
    return f"trial {best.number} of {over}: {measured}  ({shown_values(best)})"
