"""Registration: bundles as versions of a named model in MLflow, each with its lineage.

A version's files (`served_model.py`) are a LoggedModel of the experiment, which also holds what was
measured of it, named as in `results.to_metrics`, and leads to the run that made it. Runs are always
named by their id, never the thread's own.
"""

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from mmtrain.bundle import Bundle, lineage_tags, load_bundle
from mmtrain.registry.served_model import save_pyfunc
from mmtrain.store.client import find_experiment
from mmtrain.store.models import (
    CANDIDATE,
    ModelVersion,
    RegistryError,
    asking,
    calling,
    check_name,
    logged_model_id,
    name_and_version,
)

logger = logging.getLogger(__name__)

_MAX_POINTS = 1000  # metrics in a request: mlflow.utils.validation


def register(
    folder: Path,
    *,
    name: str,
    tracking_uri: str,
    run_id: str | None = None,
    experiment: str = "mmtrain",
    alias: str = CANDIDATE,
    metrics: Mapping[str, float] | None = None,
) -> ModelVersion:
    """Registers a bundle as the next version of a model and moves the alias to it.

    Args:
        folder: the bundle; checked whole before anything is sent.
        name: the registered model.
        tracking_uri: MLflow's URI, of runs and registry both.
        run_id: run that the version belongs to; None: the bundle's lineage names it, or else a
            run of its own is made.
        experiment: experiment of a run that has to be made.
        alias: letters, digits, "_" and "-"; MLflow keeps "latest" for itself.
        metrics: what was measured of the bundle, named as `results.to_metrics` names it; None:
            nothing was.

    Raises:
        BundleError: the bundle is incomplete or changed.
        RegistryError: MLflow cannot be reached or refuses, or the name is none.
    """
    check_name(name)
    bundle = load_bundle(folder)
    tags = lineage_tags(bundle)
    with calling(f"cannot register {name} at {tracking_uri}"):
        client = asking(tracking_uri)
        asked = run_id or bundle.card.lineage.run_id
        run_id = _known_run(client, asked) or _own_run(client, experiment, name)
        model = _upload(client, folder, bundle=bundle, run_id=run_id)
        _ensure_model(client, name)
        made = client.create_model_version(
            name, source=model.artifact_location, run_id=run_id, tags=tags,
            await_creation_for=0, model_id=model.model_id,
        )  # fmt: skip
        link = json.dumps([{"name": name, "version": int(made.version)}])
        client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
        client.set_registered_model_alias(name, alias, made.version)
        if metrics:
            its_run = None if bundle.card.lineage.parent else run_id
            _link(client, model, metrics, step=bundle.card.lineage.step, run_id=its_run)
    logger.info("registered %s as version %s of %s, alias %s", folder, made.version, name, alias)
    return ModelVersion(name, str(made.version), (alias,), tags)


def record(uri: str, metrics: Mapping[str, float], *, tracking_uri: str) -> None:
    """Keeps with a registered version what was measured of it later, in a run of its own.

    Args:
        uri: models:/NAME/VERSION or models:/NAME@ALIAS.
        metrics: named as `results.to_metrics` names them.
        tracking_uri: MLflow's URI.

    Raises:
        RegistryError: there is no such version, or it was registered without a LoggedModel.
    """
    with calling(f"cannot record metrics of {uri} at {tracking_uri}"):
        client = asking(tracking_uri)
        name, version = name_and_version(uri, tracking_uri=tracking_uri)
        found = client.get_model_version(name, version)
        if not (model_id := logged_model_id(found.source)):
            raise RegistryError(f"{uri} has no LoggedModel to hold metrics; register it again")
        step = int(found.tags.get("step", 0))
        _link(client, client.get_logged_model(model_id), metrics, step=step, run_id=None)


def _known_run(client: MlflowClient, run_id: str | None) -> str | None:
    """The run if this MLflow has it: a bundle may be registered elsewhere than it was trained."""
    try:
        return client.get_run(run_id).info.run_id if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _own_run(client: MlflowClient, experiment: str, name: str) -> str:
    run = client.create_run(find_experiment(client, experiment), run_name=f"register {name}")
    client.set_terminated(run.info.run_id)
    return run.info.run_id


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _upload(client: MlflowClient, folder: Path, *, bundle: Bundle, run_id: str) -> LoggedModel:
    """Writes the pyfunc and sends it as a LoggedModel, an output of the run."""
    run = client.get_run(run_id)
    card = bundle.card
    model = client.create_logged_model(
        run.info.experiment_id,
        name=f"model-{bundle.digest[:12]}",
        source_run_id=run_id,
        tags={"bundle_digest": bundle.digest},
        params=_facts(bundle),
        model_type=type(card.model.body).__module__.rpartition(".")[2],
    )
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model"
        save_pyfunc(
            path, bundle, folder=folder, origin=Model(run_id=run_id, model_id=model.model_id)
        )
        client.log_model_artifacts(model.model_id, str(path))
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=card.lineage.step)])
    return client.finalize_logged_model(model.model_id, "READY")


def _facts(bundle: Bundle) -> dict[str, str]:
    """What a LoggedModel's page shows of the bundle's size."""
    return {
        "num_parameters": str(bundle.card.num_parameters),
        "num_bytes": str(sum(file.num_bytes for file in bundle.card.files.values())),
        "tasks": ",".join(bundle.card.tasks),
        "step": str(bundle.card.lineage.step),
    }


def _link(
    client: MlflowClient,
    model: LoggedModel,
    metrics: Mapping[str, float],
    *,
    step: int,
    run_id: str | None,
) -> None:
    """Metrics to the LoggedModel. MLflow keeps them in a run too: one of their own, or the run's,
    where a value that is there already keeps its time and so is not there twice.
    """
    kept_in = run_id or _measuring_run(client, model)
    told = [p for key in metrics for p in client.get_metric_history(run_id, key)] if run_id else []
    known = {(point.key, point.value): point.timestamp for point in told if point.step == step}
    now = time.time_ns() // 1_000_000
    points = [
        Metric(key, value, known.get((key, value), now), step, model_id=model.model_id)
        for key, value in metrics.items()
    ]
    for start in range(0, len(points), _MAX_POINTS):
        client.log_batch(kept_in, metrics=points[start : start + _MAX_POINTS], synchronous=True)


def _measuring_run(client: MlflowClient, model: LoggedModel) -> str:
    tags = {"mlflow.parentRunId": model.source_run_id} if model.source_run_id else None
    run = client.create_run(model.experiment_id, tags=tags, run_name=f"measure {model.name}")
    client.set_terminated(run.info.run_id)
    return run.info.run_id
