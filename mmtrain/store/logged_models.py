"""LoggedModels of MLflow: a bundle sent as one, made a version, and told what was measured of it.

Runs are always named by their id, never the thread's own.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from mmtrain.bundle import Bundle, lineage_tags
from mmtrain.store.client import find_experiment, log_metrics
from mmtrain.store.models import ModelVersion, to_version
from mmtrain.store.pyfunc import save_pyfunc


def run_of(
    client: MlflowClient, bundle: Bundle, *, run_id: str | None, experiment: str, name: str
) -> str:
    """The run that a version belongs to: as given, or as the bundle's lineage has it.

    A bundle may be registered elsewhere than it was trained; there a run is made for it.
    """
    run_id = run_id or bundle.card.lineage.run_id
    try:
        if run_id:
            return client.get_run(run_id).info.run_id
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return _ended_run(client, find_experiment(client, experiment), name=f"register {name}")


def upload(
    client: MlflowClient, bundle: Bundle, *, folder: Path, run_id: str, code: Path
) -> LoggedModel:
    """Writes the pyfunc and sends it as a LoggedModel, an output of the run.

    Args:
        client: of MLflow.
        bundle: the bundle.
        folder: where it lies.
        run_id: the run.
        code: the file that MLflow runs to load the model.
    """
    card = bundle.card
    model = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=f"model-{bundle.digest[:12]}",
        source_run_id=run_id,
        tags={"bundle_digest": bundle.digest},
        params={
            "num_parameters": str(card.num_parameters),
            "num_bytes": str(sum(file.num_bytes for file in card.files.values())),
            "tasks": ",".join(card.tasks),
            "step": str(card.lineage.step),
        },
        model_type=type(card.model.body).__module__.rpartition(".")[2],
    )
    with tempfile.TemporaryDirectory() as temporary:
        path, origin = Path(temporary) / "model", Model(run_id=run_id, model_id=model.model_id)
        save_pyfunc(path, bundle, folder=folder, origin=origin, code=code)
        client.log_model_artifacts(model.model_id, str(path))
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=card.lineage.step)])
    return client.finalize_logged_model(model.model_id, "READY")


def add_version(
    client: MlflowClient, model: LoggedModel, bundle: Bundle, *, name: str, alias: str
) -> ModelVersion:
    """Makes a LoggedModel the next version of a registered model and moves the alias to it."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        name, source=model.artifact_location, run_id=model.source_run_id,
        tags=lineage_tags(bundle), await_creation_for=0, model_id=model.model_id,
    )  # fmt: skip
    link = json.dumps([{"name": name, "version": int(made.version)}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
    client.set_registered_model_alias(name, alias, made.version)
    return to_version(made, {alias: made.version})


def tell_metrics(
    client: MlflowClient,
    model: LoggedModel,
    metrics: Mapping[str, float],
    *,
    step: int,
    run_id: str | None,
) -> None:
    """Gives a LoggedModel what was measured of it.

    MLflow keeps the values in a run too: one of their own where `run_id` is None, or the given one,
    where a value that is there already keeps its time and so is not there twice.
    """
    points = (
        [p for key in metrics for p in client.get_metric_history(run_id, key)] if run_id else []
    )
    known = {(point.key, point.value): point.timestamp for point in points if point.step == step}
    now = time.time_ns() // 1_000_000
    fresh = [
        Metric(key, value, known.get((key, value), now), step, model_id=model.model_id)
        for key, value in metrics.items()
    ]
    if run_id is None:
        tags = {"mlflow.parentRunId": model.source_run_id} if model.source_run_id else None
        run_id = _ended_run(client, model.experiment_id, name=f"measure {model.name}", tags=tags)
    log_metrics(client, run_id, fresh)


def _ended_run(
    client: MlflowClient, experiment_id: str, *, name: str, tags: dict[str, str] | None = None
) -> str:
    run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
    client.set_terminated(run_id)
    return run_id
