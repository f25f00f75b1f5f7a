"""Results of a run: what `results.json` holds, and what the table and the report are drawn from.

Plain data without torch, so that a table is printed as quickly as a file is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import MMTrainError, first_problem
from pipelines.files import read_retried, write_whole

RESULTS_FILE = "results.json"
BASELINE = "baseline"  # in place of the split, in names of metrics


class ResultsError(MMTrainError):
    """A results file is missing or not one of ours."""


class Score(BaseModel):
    """One metric of one task on one split, beside its trivial baseline's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(description="Function of mmtrain/evaluate/metrics.py.")
    label: str = Field(description="The metric as a person calls it.")
    unit: Literal["%", "nats", ""] = Field(description="Unit of value and baseline.")
    higher_is_better: bool
    value: float
    baseline: float

    @property
    def beats_baseline(self) -> bool:
        """Strictly better than the trivial predictor."""
        if self.higher_is_better:
            return self.value > self.baseline
        return self.value < self.baseline


class Sample(BaseModel):
    """One example with what was predicted for it. Media are `data:` URIs, text is text.

    Of a mask or a box there are pictures of both, drawn over the input where it is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    example_id: int
    input: str = Field(description="The text, or a data URI of an image, a video or a sound.")
    input_kind: Literal["text", "image", "audio"]
    reference: str
    prediction: str
    log_prob: float | None = Field(
        description="Natural log of the prediction's probability; None where it has none."
    )
    reference_picture: str | None = Field(default=None, description="Data URI of a drawn answer.")
    prediction_picture: str | None = Field(default=None, description="Likewise, of the model's.")


class SplitResult(BaseModel):
    """A task's scores on one split; the task's own metric is the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str
    scores: tuple[Score, ...]
    baseline: str = Field(description="Function of mmtrain/evaluate/baselines.py.")
    num_examples: int
    seconds: float = Field(description="Time of this evaluation.")
    samples: tuple[Sample, ...] = ()


class TaskResult(BaseModel):
    """One row of the table. `metric`, `value`, `baseline` repeat the task's own score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    label: str
    unit: str
    value: float
    baseline: float
    beats_baseline: bool
    steps: int = Field(description="Optimizer steps that trained the task.")
    seconds: float = Field(description="Training time of these steps.")
    splits: tuple[SplitResult, ...] = Field(description="The test split, then harder ones.")


class Totals(BaseModel):
    """Sums over the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: int
    beating_baseline: int
    steps: int
    seconds: float = Field(description="Wall time of the training.")
    num_parameters: int
    evaluation_seconds: float


class Results(BaseModel):
    """All of `results.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    name: str = Field(description="The recipe's name.")
    step: int = Field(description="Optimizer step of the evaluated model.")
    tasks: dict[str, TaskResult]
    totals: Totals


def task_result(splits: tuple[SplitResult, ...], *, steps: int, seconds: float) -> TaskResult:
    """A task's row: its splits, the first being the one that the row's numbers are of."""
    own = splits[0].scores[0]
    return TaskResult(
        metric=own.metric,
        label=own.label,
        unit=own.unit,
        value=own.value,
        baseline=own.baseline,
        beats_baseline=own.beats_baseline,
        steps=steps,
        seconds=seconds,
        splits=splits,
    )


def run_results(
    tasks: Mapping[str, TaskResult], *, name: str, step: int, seconds: float, num_parameters: int
) -> Results:
    """All tasks' rows with their totals."""
    splits = [split for task in tasks.values() for split in task.splits]
    totals = Totals(
        tasks=len(tasks),
        beating_baseline=sum(task.beats_baseline for task in tasks.values()),
        steps=step,
        seconds=seconds,
        num_parameters=num_parameters,
        evaluation_seconds=sum(split.seconds for split in splits),
    )
    return Results(name=name, step=step, tasks=dict(tasks), totals=totals)


def with_unit(value: float, unit: str) -> str:
    """A metric's value with its unit: one decimal for shares, three for nats, four without one."""
    if unit == "%":
        return f"{value:.1f} %"
    return f"{value:.3f} {unit}" if unit else f"{value:.4f}"


def to_metrics(results: Results) -> dict[str, float]:
    """Scores and trivial baselines by name, e.g. "test/parsing/exact", "baseline/parsing/exact"."""
    metrics = {}
    for name, task in results.tasks.items():
        for split in task.splits:
            for score in split.scores:
                metrics[f"{split.split}/{name}/{score.metric}"] = score.value
                if split.split == "test":
                    metrics[f"{BASELINE}/{name}/{score.metric}"] = score.baseline
    return metrics


def write_results(results: Results, *, path: Path) -> None:
    """Writes `results.json` whole or not at all."""
    write_whole(path, results.model_dump_json(indent=1) + "\n")


def read_results(path: Path) -> Results:
    """Reads a results file.

    Raises:
        ResultsError: there is none, or it is not one of ours.
    """
    try:
        return Results.model_validate_json(read_retried(path.read_bytes, path=path))
    except FileNotFoundError:
        raise ResultsError(f"no results at {path}; `mmtrain evaluate` writes them") from None
    except ValidationError as error:
        problem = first_problem(error)
        raise ResultsError(f"{path} is not a results file of this version: {problem}") from None
