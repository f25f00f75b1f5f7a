"""The score of a trial: how far each task has come from trivial to its own single-task run.

    s_j = (m_j - b_j) / (r_j - b_j)        0: the trivial baseline b_j; 1: the reference r_j

of the task's own metric m_j, so that an accuracy and an error rate count alike. Tasks are combined
by a weighted mean or by their minimum.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from mmtrain.evaluate.results import Results
from mmtrain.tuning.sweep import SweepError

REFERENCES = "references.json"  # in the folder of a sweep of tasks alone
ALONE = "a net a task"  # row of single-task runs in the study of PolyViT's choices


class TaskMeasure(BaseModel):
    """A task's own metric on the validation split, beside what 0 and 1 of its score are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    value: float
    baseline: float
    reference: float

    @property
    def score(self) -> float:
        """0 at the baseline, 1 at the reference; below and above are possible."""
        return (self.value - self.baseline) / (self.reference - self.baseline)


def measure_tasks(results: Results, *, references: Mapping[str, float]) -> dict[str, TaskMeasure]:
    """Each task's own metric with its baseline and its reference.

    Without a reference 1 is what the metric cannot exceed: 100 where more is better (all these are
    shares, in percent), else 0.

    Raises:
        SweepError: a reference is no better than the trivial baseline.
    """
    measures: dict[str, TaskMeasure] = {}
    for name, task in results.tasks.items():
        own = task.splits[0].scores[0]
        reference = references.get(name, 100.0 if own.higher_is_better else 0.0)
        gain = (reference - own.baseline) * (1 if own.higher_is_better else -1)
        if not gain > 0:
            raise SweepError(
                f"task {name}: the reference {reference:g} is no better than the trivial baseline "
                f"{own.baseline:g} ({own.label}); give another, or leave it out"
            )
        measures[name] = TaskMeasure(
            metric=own.metric, value=own.value, baseline=own.baseline, reference=reference
        )
    return measures


def combine_scores(
    scores: Mapping[str, float],
    *,
    combine: Literal["mean", "minimum"],
    weights: Mapping[str, float],
) -> float:
    """One number of the tasks' scores.

    Args:
        scores: by task.
        combine: the weighted mean, or the smallest.
        weights: of the mean; a task not named weighs 1, and a task of weight 0 is left out.
    """
    counted = {task: weights.get(task, 1.0) for task in scores}
    counted = {task: weight for task, weight in counted.items() if weight > 0}
    if not counted:
        raise SweepError(f"no task of {', '.join(scores)} has a weight above 0; see `weights`")
    if combine == "minimum":
        return min(scores[task] for task in counted)
    total = math.fsum(scores[task] * weight for task, weight in counted.items())
    return total / math.fsum(counted.values())


def read_references(path: Path) -> dict[str, float]:
    """Tasks' metrics in their own single-task runs.

    Args:
        path: folder of `mmtrain tune --per-task`; or a file: its references.json, any JSON object
            of numbers by task, a run's results.json, or the study.json of PolyViT's choices.

    Raises:
        SweepError: there is none, or it holds something else.
    """
    file = path / REFERENCES if path.is_dir() else path
    try:
        held: JsonValue = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SweepError(f"cannot read references {file}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise SweepError(f"references {file} are no JSON: {error}") from None
    references = _references(held)
    if not references:
        raise SweepError(
            f"{file} holds no references; give numbers by task, a results.json, or the folder of "
            "`mmtrain tune --per-task`"
        )
    return references


def _references(held: JsonValue) -> dict[str, float]:
    """Numbers by task, those of a run's results, or means over the seeds of the study's rows."""
    try:
        if isinstance(held, list):
            rows = [_StudyRow.model_validate(row) for row in held]
            runs = [row.scores for row in rows if row.row == ALONE]
            tasks = dict.fromkeys(task for run in runs for task in run)
            return {task: mean(run[task] for run in runs if task in run) for task in tasks}
        results = Results.model_validate(held)
    except ValidationError:
        pairs = held.items() if isinstance(held, dict) else ()
        numbers = {name: float(value) for name, value in pairs if isinstance(value, int | float)}
        return {name: value for name, value in numbers.items() if math.isfinite(value)}
    return {name: task.value for name, task in results.tasks.items()}


class _StudyRow(BaseModel):
    row: str
    scores: dict[str, float] = {}
