"""The registry: bundles as versions of a named model in MLflow, each with its lineage.

A version's files (`served_model.py`) are a LoggedModel of the experiment, which also holds what was
measured of it, named as in `results.to_metrics`, and leads to the run that made it. Runs are always
named by their id, never the thread's own.
"""

import json
import logging
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from sqlalchemy.exc import SQLAlchemyError

from mmtrain.export import Bundle, lineage_tags, load_bundle, load_card
from mmtrain.mlflow_client import REQUEST_S, connect, download, find_experiment
from mmtrain.registry.served_model import ARTIFACT, save_pyfunc
from pipelines.errors import MMTrainError

logger = logging.getLogger(__name__)

CANDIDATE = "candidate"
_ATTEMPTS = 3
_MAX_POINTS = 1000  # metrics in a request: mlflow.utils.validation


class RegistryError(MMTrainError):
    """A model cannot be registered or is not in the registry."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered version. `lineage` are its tags: run, recipe, corpora, code, bundle digest."""

    name: str
    version: str
    aliases: tuple[str, ...]
    lineage: Mapping[str, str]

    @property
    def uri(self) -> str:
        """What loads it, by its first alias or else by its number."""
        return f"models:/{self.name}" + (
            f"@{self.aliases[0]}" if self.aliases else f"/{self.version}"
        )


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
        name, version = _name_and_version(uri, tracking_uri=tracking_uri)
        found = client.get_model_version(name, version)
        if not (model_id := logged_model_id(found.source)):
            raise RegistryError(f"{uri} has no LoggedModel to hold metrics; register it again")
        step = int(found.tags.get("step", 0))
        _link(client, client.get_logged_model(model_id), metrics, step=step, run_id=None)


def logged_model_id(source: str | None) -> str | None:
    """The LoggedModel that a version's files belong to; None: it was registered without one."""
    found = re.search(r"/models/(m-[0-9a-f]{32})/artifacts", source or "")
    return found[1] if found else None


def asking(tracking_uri: str) -> MlflowClient:
    """A client whose questions are bounded in time and asked again where nobody answers."""
    return connect(tracking_uri, within_s=REQUEST_S, attempts=_ATTEMPTS)


@contextmanager
def calling(doing: str, *, remedy: str = "") -> Iterator[None]:
    """Calls of MLflow whose failure is the user's error in one line.

    Args:
        doing: what cannot be done then; opens the message.
        remedy: ends it.

    Raises:
        RegistryError: MLflow cannot be reached, does not answer in time, or refuses.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        said = str(getattr(error, "message", error)).strip().splitlines()[0]
        raise RegistryError(f"{doing}: {said}{'; ' + remedy if remedy else ''}") from None


def check_name(name: str) -> None:
    """Refuses what cannot name a registered model, above all what reads as a path.

    Raises:
        RegistryError: says what can.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,127}", name) or ".." in name:
        raise RegistryError(
            f"{name!r} cannot name a model: letters, digits, '_', '-', '.' and spaces, "
            "128 at most, beginning with one of the first three"
        )


def get_version(name: str, *, tracking_uri: str, alias: str = CANDIDATE) -> ModelVersion:
    """The version that an alias points to.

    Raises:
        RegistryError: no such model or alias.
    """
    with calling(f"no models:/{name}@{alias} at {tracking_uri}"):
        client = asking(tracking_uri)
        found = client.get_model_version_by_alias(name, alias)
    return ModelVersion(name, str(found.version), tuple(found.aliases) or (alias,), found.tags)


def download_bundle(uri: str, *, tracking_uri: str | None = None) -> Bundle:
    """The bundle of a registered version, checked against its digests.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: the registry; None: MLflow's own setting (`MLFLOW_TRACKING_URI`).

    Raises:
        RegistryError: no such version, or it was not registered by `register`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        return load_bundle(fetch(uri, folder=Path(temporary), tracking_uri=tracking_uri))


def fetch(uri: str, *, folder: Path, tracking_uri: str | None = None) -> Path:
    """Downloads the files of a version into a folder; the bundle's place in it, not yet checked.

    Raises:
        RegistryError: no such version, or it was not registered by `register`.
    """
    tracking_uri = tracking_uri or mlflow.get_tracking_uri()
    remedy = "set MLFLOW_TRACKING_URI to the registry, or give a run or bundle folder"
    with calling(f"cannot load {uri} from {tracking_uri}", remedy=remedy):
        name, version = _name_and_version(uri, tracking_uri=tracking_uri)
        client = asking(tracking_uri)
        source = client.get_model_version_download_uri(name, version)
        tags = client.get_model_version(name, version).tags
        model = download(source, folder=folder, tracking_uri=tracking_uri)
    bundle = model / "artifacts" / ARTIFACT
    if not bundle.is_dir():
        raise RegistryError(f"{uri} holds no bundle of ours; register it with `register`")
    check_digest(load_card(bundle)[1], tags, uri=uri)
    return bundle


def check_digest(digest: str, tags: Mapping[str, str], *, uri: str) -> None:
    """Refuses a bundle that is not the one that was registered.

    Raises:
        RegistryError: the digest is another than the version's.
    """
    if digest != tags.get("bundle_digest", digest):
        raise RegistryError(
            f"{uri} was registered with bundle {tags['bundle_digest'][:12]}, its files are "
            f"{digest[:12]}; they changed, register the model again"
        )


def _name_and_version(uri: str, *, tracking_uri: str) -> tuple[str, str]:
    parts = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if parts is None:
        raise RegistryError(f"{uri!r} is no version; write models:/NAME@ALIAS or models:/NAME/3")
    name, alias, version = parts.groups()
    if alias:
        client = asking(tracking_uri)
        version = client.get_model_version_by_alias(name, alias).version
    return name, str(version)


def fixed_uri(uri: str, *, tracking_uri: str | None = None) -> str:
    """`models:/NAME/VERSION` of the version that a URI means now; an alias may move later.

    Raises:
        RegistryError: there is no such version.
    """
    tracking_uri = tracking_uri or mlflow.get_tracking_uri()
    remedy = "give --tracking, or set MLFLOW_TRACKING_URI to the registry"
    with calling(f"no {uri} at {tracking_uri}", remedy=remedy):
        name, version = _name_and_version(uri, tracking_uri=tracking_uri)
    return f"models:/{name}/{version}"


def find_registered(digest: str, *, tracking_uri: str) -> str | None:
    """`models:/NAME/VERSION` of the newest version of a bundle of that digest; None: no version."""
    with calling(f"cannot search {tracking_uri}"):
        client = asking(tracking_uri)
        found = client.search_model_versions(f"tags.bundle_digest = '{digest}'")
    newest = max(found, key=lambda version: version.creation_timestamp, default=None)
    return f"models:/{newest.name}/{newest.version}" if newest else None


def find_parts(digest: str, *, tracking_uri: str) -> list[ModelVersion]:
    """Versions that were taken out of the model of that bundle digest, oldest first.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    with calling(f"cannot search {tracking_uri}"):
        client = asking(tracking_uri)
        found = client.search_model_versions(f"tags.parent_digest = '{digest}'")
        aliases = {
            name: client.get_registered_model(name).aliases
            for name in {version.name for version in found}
        }
    return [
        ModelVersion(
            version.name,
            str(version.version),
            tuple(a for a, of in aliases[version.name].items() if str(of) == str(version.version)),
            version.tags,
        )
        for version in sorted(found, key=lambda version: version.creation_timestamp)
    ]


def download_recipe(bundle: Bundle, *, tracking_uri: str | None = None) -> str | None:
    """The recipe in JSON of the run that trained a bundle; None where that is not to be had."""
    if not (run_id := bundle.card.lineage.run_id):
        return None
    tracking_uri = tracking_uri or mlflow.get_tracking_uri()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with calling(f"run {run_id} at {tracking_uri} has no recipe.json"):
                path = download(
                    f"runs:/{run_id}/recipe.json", folder=Path(temporary), tracking_uri=tracking_uri
                )
        except RegistryError as error:
            logger.warning("%s", error)
            return None
        return path.read_text(encoding="utf-8")


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
