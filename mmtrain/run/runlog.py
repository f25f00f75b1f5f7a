"""What rank 0 tells of a run: the tracker its series, the display its progress, the folder its log.

`series.jsonl` in the run's folder has a line a point, so that the report needs no MLflow. A disk
that is full does not stop a run: lines wait, or are lost, and the display says how many.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmtrain.engines import StepStats
from mmtrain.masks.kept import KeptPoint
from mmtrain.process.line_file import LineFile
from mmtrain.recipe import Recipe
from mmtrain.run.job import Job, Spent
from mmtrain.run.progress import RunProgress, TaskProgress
from mmtrain.run.tracked import HAND_OVER_S
from mmtrain.step.gradient_monitor import Cosines
from mmtrain.step.series import Point
from mmtrain.step.validation import ValidationPoint
from mmtrain.store.tracking import Tracker
from pipelines.errors import MMTrainError
from pipelines.files import read_retried, write_whole

SERIES, ROUTING, EXAMPLES = "series.jsonl", "routing.json", "examples.jsonl"
GRADIENTS, KEPT = "gradients.jsonl", "kept.jsonl"


class RunLogError(MMTrainError):
    """What a run's log left cannot be used; names the file."""


class RunLog:
    """Rank 0's log of a run; `close` ends it and says what was spent.

    Args:
        job: the run.
        recipe: the run's recipe.
        post: takes what the display shows.
        first_step: step that this attempt begins at; lines of later steps are written again.
    """

    def __init__(
        self,
        job: Job,
        recipe: Recipe,
        *,
        post: Callable[[RunProgress], object],
        first_step: int,
    ) -> None:
        self._recipe, self._post, self._first_step = recipe, post, first_step
        self._out = job.out
        kept = _keep_until(job.out / SERIES, first_step)
        for name in (GRADIENTS, KEPT):
            _keep_until(job.out / name, first_step)
        self._files: dict[str, LineFile] = {}
        self._before_s = kept[-1]["elapsed_s"] if kept else 0.0
        self._task_seconds: dict[str, float] = dict(kept[-1]["task_seconds"]) if kept else {}
        self._task_steps: dict[str, int] = dict(kept[-1]["task_steps"]) if kept else {}
        self._began = time.monotonic()
        self._tracker = Tracker.open(
            job.tracking, out=job.out, name=recipe.name, resume=True, start_s=0
        )

    def point(
        self, step: int, point: Point, *, stats: StepStats, counts: Mapping[str, int]
    ) -> None:
        """A point of the training series after `step` steps; `counts` are batches by task."""
        elapsed_s = self._before_s + time.monotonic() - self._began
        new = {task: counts[task] - self._task_steps.get(task, 0) for task in counts}
        for task, batches in new.items():
            share = point.seconds * batches / max(1, sum(new.values()))
            self._task_seconds[task] = self._task_seconds.get(task, 0.0) + share
        self._task_steps = dict(counts)
        self._tracker.log_metrics(self._metrics(point, stats), step=step)
        line = {
            "step": step,
            "elapsed_s": elapsed_s,
            "loss": {task: values.loss for task, values in point.tasks.items()},
            "task_steps": self._task_steps,
            "task_seconds": self._task_seconds,
        }
        self._add(SERIES, line)
        routing = {"tasks": list(self._recipe.tasks), "layers": point.routing}
        with contextlib.suppress(OSError, MMTrainError):  # whole sums: the next ones hold these
            write_whole(self._out / ROUTING, json.dumps(routing))
        self._post(self._progress(step, point, elapsed_s=time.monotonic() - self._began))

    def gradients(self, step: int, cosines: Cosines | None) -> None:
        """How the tasks' gradients agreed when last sampled; None: nothing new."""
        if cosines is None:
            return
        tasks = list(self._recipe.tasks)
        line = {"step": step, "tasks": tasks, "cosines": cosines}
        self._add(GRADIENTS, line)
        values = {
            f"gradient_cosine/{tasks[i]}/{tasks[j]}": value
            for i, row in enumerate(cosines)
            for j, value in enumerate(row[:i])
            if value is not None
        }
        self._tracker.log_metrics(values, step=step)

    def kept(self, step: int, point: KeptPoint | None) -> None:
        """Units that each subtask keeps after `step` steps; None: there are no masks."""
        if point is None:
            return
        self._add(KEPT, {"step": step, **asdict(point)})
        values = {f"kept/{name}": share for name, share in point.shares().items()}
        for name, shares in point.group_shares().items():
            pairs = zip(point.groups, shares, strict=True)
            values |= {f"kept_by_group/{group}/{name}": share for group, share in pairs}
        names = list(point.overlap)
        values |= {
            f"overlap/{names[i]}/{names[j]}": value
            for i, row in enumerate(point.overlap.values())
            for j, value in enumerate(row[:i])
        }
        self._tracker.log_metrics(values, step=step)

    def examples(self, step: int, example_ids: Sequence[int]) -> None:
        """Debug: the examples that a step trains on, over all ranks, a line a step."""
        self._add(EXAMPLES, {"step": step, "examples": list(example_ids)})

    def validation(self, step: int, measured: Mapping[str, ValidationPoint]) -> None:
        """Validation after `step` steps."""
        values = {}
        for task, point in measured.items():
            values[f"validation/{task}/loss"] = point.loss
            if point.accuracy is not None:
                values[f"validation/{task}/accuracy"] = point.accuracy
        self._tracker.log_metrics(values, step=step)

    def close(self) -> Spent:
        """Hands the tracker back to the driver, the run going on."""
        for file in self._files.values():
            file.close()
        self._tracker.close(status=None, timeout_s=HAND_OVER_S)
        seconds = self._before_s + time.monotonic() - self._began
        return Spent(seconds, self._task_steps, self._task_seconds)

    def _add(self, name: str, line: Mapping[str, Any]) -> None:
        if name not in self._files:
            self._files[name] = LineFile(self._out / name)
        self._files[name].append(line)

    def _note(self) -> str:
        missing = sum(file.num_missing for file in self._files.values())
        return f"{missing} lines of metrics not written: is the disk full?" if missing else ""

    def _metrics(self, point: Point, stats: StepStats) -> dict[str, float]:
        values = {"gradient_norm": stats.gradient_norm}
        values |= {f"learning_rate/{owner}": rate for owner, rate in stats.learning_rates.items()}
        for task, means in point.tasks.items():
            values[f"train/{task}/loss"] = means.loss
            values[f"train/{task}/balancing_loss"] = means.auxiliary
            values[f"train/{task}/examples_per_s"] = means.examples / point.seconds
        total = sum(means.examples for means in point.tasks.values())
        return {**values, "train/examples_per_s": total / point.seconds}

    def _progress(self, step: int, point: Point, *, elapsed_s: float) -> RunProgress:
        done = max(1, step - self._first_step)
        return RunProgress(
            step=step,
            num_steps=self._recipe.num_steps,
            elapsed_s=elapsed_s,
            remaining_s=elapsed_s / done * (self._recipe.num_steps - step),
            note=self._note(),
            tasks={
                task: TaskProgress(
                    steps=self._task_steps[task],
                    loss=means.loss,
                    examples_per_s=means.examples / point.seconds,
                )
                for task, means in point.tasks.items()
            },
        )


def _keep_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Leaves of a log the lines up to a step; those after it are written again.

    It is cut where it is, which also a full disk allows.
    """
    kept = [line for line in read_series(path) if line["step"] <= step]
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        os.truncate(path, sum(len(line) for line in lines[: len(kept)]))
    return kept


def read_series(path: Path) -> list[dict[str, Any]]:
    """Lines of a run's series; one cut short by a kill, and what follows it, is left out."""
    lines = []
    whole = path.read_bytes() if path.exists() else b""
    for line in whole.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


@dataclass(frozen=True, slots=True)
class Routing:
    """Rows sent to each expert, (task, expert) by layer, with the rows' tasks."""

    tasks: tuple[str, ...] = ()
    layers: Mapping[str, list[list[int]]] = field(default_factory=dict)


def read_routing(path: Path) -> Routing:
    """The routing counts that a run left; none where it has no experts.

    Raises:
        RunLogError: a crash has left something else there.
    """
    if not path.exists():
        return Routing()
    try:
        held = json.loads(read_retried(path.read_bytes, path=path))
        return Routing(tuple(held["tasks"]), held["layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunLogError(
            f"{path} is damaged: {error}; remove it, and the report shows no experts"
        ) from None


def read_kept(path: Path) -> dict[int, KeptPoint]:
    """Units kept by subtasks over a run, by step; empty where it has no masks."""
    return {
        line["step"]: KeptPoint(line["groups"], line["kept"], line["overlap"])
        for line in read_series(path)
    }


@dataclass(frozen=True, slots=True)
class Agreement:
    """Mean cosines between tasks' gradients, (tasks, tasks); None: a pair never measured."""

    tasks: tuple[str, ...] = ()
    cosines: Cosines = field(default_factory=list)


def read_agreement(path: Path) -> Agreement:
    """How the tasks' gradients agreed, on the mean over a run's samples; empty where none is."""
    lines = read_series(path)
    if not lines:
        return Agreement()
    tasks = lines[-1]["tasks"]
    places = range(len(tasks))

    def mean(row: int, column: int) -> float | None:
        found = [line["cosines"][row][column] for line in lines]
        known = [value for value in found if value is not None]
        return sum(known) / len(known) if known else None

    return Agreement(tuple(tasks), [[mean(row, column) for column in places] for row in places])
