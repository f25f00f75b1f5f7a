"""The registry: bundles as versions of a named model in MLflow, each with its lineage.

A version is MLflow's "model from code": the bundle and the sources that made it, no pickle. It
loads in a process that has the packages of `REQUIREMENTS` and nothing of ours installed, since the
sources of `mmtrain` and `pipelines` travel with it (`code_paths`) and come first on the path.

As a pyfunc it takes a table with columns `task` and `input` (text, or base64 of the file's bytes
for any other modality) and gives one with `text`, `log_prob` (nan where there is none), `scores`,
`labels` and `values` (JSON), `tree` and `mask` (base64 of a PNG file).
"""

import base64
import binascii
import importlib.metadata
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema

import mmtrain
import pipelines
from mmtrain.export import Bundle, load_bundle
from mmtrain.mlflow_settings import bounded
from mmtrain.predictor import PredictionError, Predictor
from mmtrain.pyfunc_example import input_example
from mmtrain.tracking import find_experiment
from pipelines.errors import MMTrainError

logger = logging.getLogger(__name__)

REQUIREMENTS = (
    "av", "jiwer", "librosa", "mlflow", "numpy", "pandas", "pillow", "pydantic", "safetensors",
    "soundfile", "soxr", "tokenizers", "torch",
)  # fmt: skip
CANDIDATE = "candidate"
_TIMEOUT_S, _MAX_RETRIES = 60, 2  # one request may carry all of the weights
_COLUMNS = ("text", "log_prob", "scores", "tree", "labels", "values", "mask")
_ARTIFACT = "bundle"  # name of the bundle among the version's artifacts


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

    Raises:
        BundleError: the bundle is incomplete or changed.
        RegistryError: MLflow cannot be reached or refuses.
    """
    bundle = load_bundle(folder)
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    tags = lineage_tags(bundle)
    try:
        with bounded(_TIMEOUT_S, max_retries=_MAX_RETRIES):
            run_id = run_id or bundle.card.lineage.run_id or _own_run(client, experiment, name)
            source = _upload(client, folder, bundle=bundle, run_id=run_id)
            _ensure_model(client, name)
            made = client.create_model_version(
                name, source=source, run_id=run_id, tags=tags, await_creation_for=0
            )
            client.set_registered_model_alias(name, alias, made.version)
    except MlflowException as error:
        raise RegistryError(f"cannot register {name} at {tracking_uri}: {error.message}") from None
    logger.info("registered %s as version %s of %s, alias %s", folder, made.version, name, alias)
    return ModelVersion(name, str(made.version), (alias,), tags)


def get_version(name: str, *, tracking_uri: str, alias: str = CANDIDATE) -> ModelVersion:
    """The version that an alias points to.

    Raises:
        RegistryError: no such model or alias.
    """
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    try:
        with bounded(_TIMEOUT_S, max_retries=_MAX_RETRIES):
            found = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise RegistryError(
            f"no models:/{name}@{alias} at {tracking_uri}: {error.message}"
        ) from None
    return ModelVersion(name, str(found.version), tuple(found.aliases) or (alias,), found.tags)


def download_bundle(uri: str, *, tracking_uri: str | None = None) -> Bundle:
    """The bundle of a registered version, checked against its digests.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: the registry; None: MLflow's own setting (`MLFLOW_TRACKING_URI`).

    Raises:
        RegistryError: no such version, or it was not registered by `register`.
    """
    tracking_uri = tracking_uri or mlflow.get_tracking_uri()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with bounded(_TIMEOUT_S, max_retries=_MAX_RETRIES):
                source = _download_uri(uri, tracking_uri=tracking_uri)
                model = mlflow.artifacts.download_artifacts(
                    source, dst_path=temporary, tracking_uri=tracking_uri
                )
        except MlflowException as error:
            raise RegistryError(
                f"cannot load {uri} from {tracking_uri}: {error.message}; set MLFLOW_TRACKING_URI "
                "to the registry, or give a run or bundle folder"
            ) from None
        folder = Path(model) / "artifacts" / _ARTIFACT
        if not folder.is_dir():
            raise RegistryError(f"{uri} holds no bundle of ours; register it with `register`")
        return load_bundle(folder)


def _download_uri(uri: str, *, tracking_uri: str) -> str:
    """Where the files of a version are; MLflow's own look-up asks the process-wide registry."""
    name, version = _name_and_version(uri, tracking_uri=tracking_uri)
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    return client.get_model_version_download_uri(name, version)


def _name_and_version(uri: str, *, tracking_uri: str) -> tuple[str, str]:
    parts = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if parts is None:
        raise RegistryError(f"{uri!r} is no version; write models:/NAME@ALIAS or models:/NAME/3")
    name, alias, version = parts.groups()
    if alias:
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        version = client.get_model_version_by_alias(name, alias).version
    return name, str(version)


def fixed_uri(uri: str, *, tracking_uri: str | None = None) -> str:
    """`models:/NAME/VERSION` of the version that a URI means now; an alias may move later.

    Raises:
        RegistryError: there is no such version.
    """
    tracking_uri = tracking_uri or mlflow.get_tracking_uri()
    try:
        with bounded(_TIMEOUT_S, max_retries=_MAX_RETRIES):
            name, version = _name_and_version(uri, tracking_uri=tracking_uri)
    except MlflowException as error:
        raise RegistryError(
            f"no {uri} at {tracking_uri}: {error.message}; give --tracking, or set "
            "MLFLOW_TRACKING_URI to the registry"
        ) from None
    return f"models:/{name}/{version}"


def find_registered(digest: str, *, tracking_uri: str) -> str | None:
    """`models:/NAME/VERSION` of the newest version of a bundle of that digest; None: no version."""
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    try:
        with bounded(_TIMEOUT_S, max_retries=_MAX_RETRIES):
            found = client.search_model_versions(f"tags.bundle_digest = '{digest}'")
    except MlflowException as error:
        raise RegistryError(f"cannot search {tracking_uri}: {error.message}") from None
    newest = max(found, key=lambda version: version.creation_timestamp, default=None)
    return f"models:/{newest.name}/{newest.version}" if newest else None


def find_parts(digest: str, *, tracking_uri: str) -> list[ModelVersion]:
    """Versions that were taken out of the model of that bundle digest, oldest first.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    try:
        with bounded(_TIMEOUT_S, max_retries=_MAX_RETRIES):
            found = client.search_model_versions(f"tags.parent_digest = '{digest}'")
            aliases = {
                name: client.get_registered_model(name).aliases
                for name in {version.name for version in found}
            }
    except MlflowException as error:
        raise RegistryError(f"cannot search {tracking_uri}: {error.message}") from None
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
            with bounded(_TIMEOUT_S, max_retries=_MAX_RETRIES):
                path = mlflow.artifacts.download_artifacts(
                    run_id=run_id,
                    artifact_path="recipe.json",
                    dst_path=temporary,
                    tracking_uri=tracking_uri,
                )
        except (MlflowException, OSError) as error:
            logger.warning("run %s at %s has no recipe.json: %s", run_id, tracking_uri, error)
            return None
        return Path(path).read_text(encoding="utf-8")


def lineage_tags(bundle: Bundle) -> dict[str, str]:
    """Where a version comes from, as tags."""
    lineage = bundle.card.lineage
    tags = {
        "bundle_digest": bundle.digest,
        "recipe": lineage.recipe,
        "recipe_digest": lineage.recipe_digest,
        "code_version": lineage.code_version,
        "step": str(lineage.step),
        "tasks": ",".join(bundle.card.tasks),
    }
    if lineage.run_id:
        tags["training_run_id"] = lineage.run_id
    if lineage.init_from:
        tags["init_from"] = lineage.init_from
    if lineage.parent:
        tags["parent_digest"] = lineage.parent.digest
        tags["parent_tasks"] = ",".join(lineage.parent.tasks)
        if lineage.parent.version:
            tags["parent_version"] = lineage.parent.version
    tags |= lineage.facts
    return tags | {f"corpus.{task}": digest for task, digest in lineage.corpora.items()}


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


def _upload(client: MlflowClient, folder: Path, *, bundle: Bundle, run_id: str) -> str:
    """Writes the pyfunc, sends it to the run's artifacts; the URI of what was sent."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model"
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(Path(__file__).with_name("serve_model.py")),
            artifacts={_ARTIFACT: str(folder.resolve())},
            code_paths=[str(code) for code in _sources(Path(temporary))],
            signature=signature(),
            input_example=input_example(bundle),
            pip_requirements=[_pinned(package) for package in REQUIREMENTS],
            metadata={"bundle_digest": bundle.digest},
        )
        place = f"model-{bundle.digest[:12]}"
        client.log_artifacts(run_id, str(path), place)
    return f"{client.get_run(run_id).info.artifact_uri}/{place}"


def _sources(temporary: Path) -> list[Path]:
    """Copies of both packages without what Python compiled."""
    copies = []
    for package in (mmtrain, pipelines):
        folder = Path(package.__path__[0])
        copy = temporary / "code" / folder.name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
        copies.append(copy)
    return copies


def _pinned(package: str) -> str:
    version = importlib.metadata.version(package).split("+")[0]  # "2.13.0+cpu" is on no index
    return f"{package}=={version}"


def signature() -> ModelSignature:
    """Columns of the pyfunc's input and output tables."""

    def text(name: str, *, required: bool = True) -> ColSpec:
        return ColSpec(DataType.string, name, required=required)

    outputs = [ColSpec(DataType.double, "log_prob")]
    outputs += [text(name) for name in ("text", "scores", "labels", "values")]
    outputs += [text(name, required=False) for name in ("tree", "mask")]
    return ModelSignature(
        inputs=Schema([text("task"), text("input")]),
        outputs=Schema(sorted(outputs, key=lambda column: _COLUMNS.index(str(column.name)))),
    )


class ServedModel(PythonModel):
    """The pyfunc of a bundle; MLflow calls its two methods."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the bundle among the version's artifacts."""
        self._predictor = Predictor.load(context.artifacts[_ARTIFACT])

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  # MLflow's has no result type
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # Any: MLflow's own signature
    ) -> pd.DataFrame:
        """Answers row by row, in the rows' order; rows of one task are answered together."""
        answers: list[dict[str, object]] = [{} for _ in range(len(model_input))]
        positions = np.arange(len(model_input))
        for task, rows in model_input.assign(row=positions).groupby("task", sort=True):
            values = [self._value(str(task), str(value)) for value in rows["input"]]
            predictions = self._predictor.predict(str(task), values)
            for row, prediction in zip(rows["row"], predictions, strict=True):
                said = prediction.to_dict()
                answers[row] = said | {
                    "log_prob": np.nan if said["log_prob"] is None else said["log_prob"],
                    **{name: json.dumps(said[name]) for name in ("scores", "labels", "values")},
                }
        return pd.DataFrame(answers, columns=list(_COLUMNS))

    def _value(self, task: str, value: str) -> str | bytes:
        """Text as it is, other inputs from base64: a server reads no files of the caller's name."""
        if self._predictor.task(task).inputs.modality == "text":
            return value
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise PredictionError(
                f"{value[:40]!r}, as input of {task}: not base64 ({error}); send the file's bytes"
            ) from None


def serve() -> None:
    """Names the pyfunc to MLflow, which runs `serve_model.py` to find it."""
    set_model(ServedModel())
