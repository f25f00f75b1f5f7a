"""What the driver of a run hands to its workers, and what it has when they have ended."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from pathlib import Path

from mmtrain.store.config import TrackingConfig


@dataclass(frozen=True, slots=True)
class Job:
    """What the driver hands to every worker; all workers see both folders.

    `until` stops a run early, its learning rates falling as if it went on; None: at its end.
    `attempt` is this call of the driver: what a worker of another leaves in the folder is not its.
    """

    recipe_json: str
    out: Path
    data_dir: Path
    tracking: TrackingConfig
    run_id: str | None
    until: int | None = None
    attempt: str = dataclass_field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run that has ended: its folder, the bundle, its corpora, steps taken and wall time."""

    name: str
    out: Path
    bundle: Path
    data_dir: Path
    run_id: str | None
    step: int
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        folders = {name: str(getattr(self, name)) for name in ("out", "bundle", "data_dir")}
        return {**asdict(self), **folders}


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of training, and steps and seconds by task, over all attempts of a run."""

    seconds: float
    task_steps: Mapping[str, int]
    task_seconds: Mapping[str, float]
