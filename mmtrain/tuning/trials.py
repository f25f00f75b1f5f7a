"""Trials of a sweep: what is written of each, and what is made of all.

`trials/<number>/trial.json` is the one record of a trial: a sweep that goes on reads them all,
repeats none that has ended and takes up those that were cut off.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from mmtrain.tuning.score import TaskMeasure
from mmtrain.tuning.sweep import SweepError
from pipelines.errors import first_problem
from pipelines.files import read_retried, write_whole

TRIALS, TRIAL = "trials", "trial.json"

State = Literal["running", "finished", "stopped", "failed", "lost"]


class RungPoint(BaseModel):
    """One measurement of a trial, and the values that it was trained with up to there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    score: float
    values: dict[str, JsonValue] = {}


class TrialRecord(BaseModel):
    """All that is known of a trial.

    "stopped" trials were left behind by the scheduler, "failed" ones cannot be trained as they
    are, "lost" ones had their process die too often and are tried again by --resume.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    values: dict[str, JsonValue]
    state: State = "running"
    step: int = 0
    num_steps: int
    points: tuple[RungPoint, ...] = ()
    tasks: dict[str, TaskMeasure] = {}
    objectives: dict[str, float] = {}
    seconds: float = 0.0
    run_id: str | None = None
    message: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether a sweep that goes on leaves it alone."""
        return self.state in ("finished", "stopped", "failed")

    @property
    def score(self) -> float | None:
        """The newest; None: not measured yet."""
        return self.points[-1].score if self.points else None

    def with_(self, **fields: Any) -> Self:
        """The same trial with other fields."""
        return self.model_copy(update=fields)


class SweepOutcome(BaseModel):
    """A sweep that has ended: of several objectives the best trial is the knee of the front."""

    model_config = ConfigDict(frozen=True)

    name: str
    out: Path
    best: int
    best_recipe: Path
    front: tuple[int, ...]
    run_id: str | None
    seconds: float
    trials: tuple[TrialRecord, ...]

    @property
    def best_trial(self) -> TrialRecord:
        """The record of the best trial."""
        return next(record for record in self.trials if record.number == self.best)


class JointOutcome(BaseModel):
    """Sweeps of tasks alone, and the recipe that joins their best values."""

    model_config = ConfigDict(frozen=True)

    name: str
    out: Path
    best_recipe: Path
    seconds: float
    tasks: dict[str, SweepOutcome]


def trial_folder(out: Path, number: int) -> Path:
    """Folder of a trial of the sweep in `out`."""
    return out / TRIALS / f"{number:03d}"


def write_record(record: TrialRecord, *, out: Path) -> None:
    """Writes a trial's record whole or not at all."""
    folder = trial_folder(out, record.number)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TRIAL, record.model_dump_json(indent=1) + "\n")


def read_record(out: Path, number: int) -> TrialRecord | None:
    """A trial's record; None: it has not begun.

    Raises:
        SweepError: it is not one of ours.
    """
    path = trial_folder(out, number) / TRIAL
    try:
        return TrialRecord.model_validate_json(read_retried(path.read_bytes, path=path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise SweepError(
            f"{path} is no trial of this version: {first_problem(error)}; remove its folder"
        ) from None


def read_records(out: Path) -> list[TrialRecord]:
    """Records of all trials of a sweep, by number."""
    folders = (path.parent.name for path in (out / TRIALS).glob(f"*/{TRIAL}"))
    numbers = sorted(int(name) for name in folders if name.isdigit())
    return [record for number in numbers if (record := read_record(out, number))]
