"""Where a run is tracked."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mmtrain.store.client import REQUEST_S


class TrackingConfig(BaseModel):
    """Where a run is tracked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str | None = Field(
        default=None, description="MLflow tracking URI; None: a SQLite file beside the run."
    )
    experiment: str = Field(default="mmtrain", description="MLflow experiment.")
    run_name: str | None = Field(
        default=None, description="Name of the run; None: what the writer calls it."
    )
    parent_run_id: str | None = Field(
        default=None, description="Run that this one stands under, e.g. a sweep's; None: none."
    )
    interval_s: float = Field(default=1.0, gt=0, description="Seconds between deliveries.")
    timeout_s: float = Field(
        default=REQUEST_S, gt=0, description="Longest wait for one answer of a server, whole."
    )
    retry_s: float = Field(
        default=10.0, gt=0, description="Wait after MLflow could not be reached."
    )


def tracking_uri(config: TrackingConfig, *, out: Path) -> str:
    """The URI that is set, or the SQLite file of the output folder."""
    return config.uri or f"sqlite:///{out.resolve() / 'mlruns.db'}"
