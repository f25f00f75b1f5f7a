"""A small sweep and records of its trials, for tests of what is made of them."""

from typing import Any

from mmtrain.tuning.score import TaskMeasure
from mmtrain.tuning.sweep import Choice, LogUniform, SweepConfig
from mmtrain.tuning.trials import RungPoint, TrialRecord

RATE, SIZE = "optimizer.learning_rate", "model.body.model_dim"


def example_sweep(**fields: Any) -> SweepConfig:
    space = {RATE: LogUniform(low=1e-4, high=1e-2), SIZE: Choice(values=(16, 32))}
    return SweepConfig(**{"name": "example", "space": space, "num_trials": 6, **fields})


def record(number: int, *, state: str = "finished", size: int = 16, **objectives: float) -> Any:
    """A trial whose rate is (number + 1) / 1000."""
    score = objectives.setdefault("score", 0.1 * number)
    measure = TaskMeasure(metric="accuracy", value=50.0, baseline=10.0, reference=90.0)
    ended = state == "finished"
    return TrialRecord.model_validate(
        {
            "number": number,
            "values": {RATE: (number + 1) / 1000, SIZE: size},
            "state": state,
            "step": 9 if ended else 3,
            "num_steps": 9,
            "points": (RungPoint(step=3, score=score),),
            "tasks": {"digit": measure},
            "objectives": objectives,
        }
    )
