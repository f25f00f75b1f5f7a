"""Trials of a sweep: what is written of each, which is best, and which none is better than.

`trials/<number>/trial.json` is the one record of a trial: a sweep that goes on reads them all,
repeats none that has ended and takes up those that were cut off.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from mmtrain.tuning.score import TaskMeasure
from mmtrain.tuning.sweep import LARGER_IS_BETTER, Objective, SweepError, Values
from pipelines.errors import first_problem
from pipelines.files import read_retried, write_whole

TRIALS, TRIAL = "trials", "trial.json"

State = Literal["running", "finished", "stopped", "failed", "lost"]
_ENDED: tuple[State, ...] = ("finished", "stopped", "failed")  # not to be run again


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
        return self.state in _ENDED

    @property
    def score(self) -> float | None:
        """The newest; None: not measured yet."""
        return self.points[-1].score if self.points else None


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
    numbers = sorted(
        int(path.parent.name)
        for path in (out / TRIALS).glob(f"*/{TRIAL}")
        if path.parent.name.isdigit()
    )
    found = (read_record(out, number) for number in numbers)
    return [record for record in found if record is not None]


def values_key(values: Values) -> str:
    """The same values, the same text: by it a trial is known again."""
    return json.dumps(dict(values), sort_keys=True)


def best_trial(
    records: Iterable[TrialRecord], *, objectives: Sequence[Objective]
) -> TrialRecord | None:
    """The best finished trial: of one objective its best, of several the knee of their front.

    None: no trial has finished.
    """
    finished = [record for record in records if record.state == "finished"]
    if not finished:
        return None
    if len(objectives) == 1:
        sign = 1 if objectives[0] in LARGER_IS_BETTER else -1
        return max(finished, key=lambda record: sign * record.objectives[objectives[0]])
    return knee(pareto_front(finished, objectives=objectives), objectives=objectives)


def pareto_front(
    records: Iterable[TrialRecord], *, objectives: Sequence[Objective]
) -> list[TrialRecord]:
    """Finished trials that no other beats: as good in every objective and better in one."""
    finished = [record for record in records if record.state == "finished"]
    costs = {record.number: _costs(record.objectives, objectives) for record in finished}
    return [
        record
        for record in finished
        if not any(_dominates(costs[other.number], costs[record.number]) for other in finished)
    ]


def knee(front: Sequence[TrialRecord], *, objectives: Sequence[Objective]) -> TrialRecord:
    """The front's trial nearest to the best of each objective, each scaled to the front's range.

    argmin_t sum_k ((c_k(t) - min c_k) / (max c_k - min c_k))^2        of costs c; ties: the first
    """
    costs = [_costs(record.objectives, objectives) for record in front]
    columns = list(zip(*costs, strict=True))
    lows = [min(column) for column in columns]
    spans = [max(column) - min(column) or 1.0 for column in columns]

    def distance(place: int) -> float:
        shares = zip(costs[place], lows, spans, strict=True)
        return sum(((cost - low) / span) ** 2 for cost, low, span in shares)

    return front[min(range(len(front)), key=distance)]


def _costs(measured: Mapping[str, float], objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Objectives with their sign turned where larger is better, so that all are to be small."""
    return tuple(-measured[n] if n in LARGER_IS_BETTER else measured[n] for n in objectives)


def _dominates(mine: Sequence[float], its: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(mine, its, strict=True)) and tuple(mine) != tuple(its)
