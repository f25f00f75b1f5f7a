"""Versions of registered models in MLflow: found, downloaded, checked."""

import logging
import re
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from mmtrain.bundle import CARD, Bundle, BundleError, Card, load_bundle, load_card
from mmtrain.files import RECIPE
from mmtrain.store.client import REQUEST_S, connect, download
from pipelines.errors import MMTrainError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

logger = logging.getLogger(__name__)

CANDIDATE = "candidate"
ARTIFACT = "bundle"  # name of the bundle among a version's artifacts
_ATTEMPTS = 3


class RegistryError(MMTrainError):
    """A model cannot be registered or is not in the registry."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered version.

    Args:
        name: the registered model.
        version: its number.
        aliases: names that lead to it.
        lineage: its tags: run, recipe, corpora, code, bundle digest.
        created_ms: when it was registered, milliseconds since 1970.
        run_id: the run that it belongs to; None: MLflow knows of none.
        model_id: the LoggedModel that its files belong to; None: it was registered without one.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    lineage: Mapping[str, str]
    created_ms: int
    run_id: str | None
    model_id: str | None

    @property
    def uri(self) -> str:
        """What loads it, by its first alias or else by its number."""
        return f"models:/{self.name}@{self.aliases[0]}" if self.aliases else self.fixed_uri

    @property
    def fixed_uri(self) -> str:
        """models:/NAME/VERSION, which no alias moves."""
        return f"models:/{self.name}/{self.version}"


def to_version(found: "MlflowVersion", aliases: Mapping[str, object]) -> ModelVersion:
    """A version as MLflow has it; its search leaves out aliases, which are the model's."""
    held = re.search(r"/models/(m-[0-9a-f]{32})/artifacts", found.source or "")
    return ModelVersion(
        name=found.name,
        version=str(found.version),
        aliases=tuple(alias for alias, to in aliases.items() if str(to) == str(found.version)),
        lineage=found.tags,
        created_ms=found.creation_timestamp or 0,
        run_id=found.run_id,
        model_id=held[1] if held else None,
    )


@contextmanager
def asking(tracking_uri: str, doing: str = "", *, remedy: str = "") -> "Generator[MlflowClient]":
    """A client whose calls are bounded in time, and whose failure is the user's error in a line.

    What only asks is asked again where nobody answers.

    Args:
        tracking_uri: MLflow's URI, of runs and registry both.
        doing: what cannot be done then; opens the message.
        remedy: ends it.

    Raises:
        RegistryError: MLflow cannot be reached, does not answer in time, or refuses.
    """
    try:
        yield connect(tracking_uri, within_s=REQUEST_S, attempts=_ATTEMPTS)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "message", error)).strip().splitlines()[0]
        failed = doing or f"the registry at {tracking_uri} does not answer"
        raise RegistryError(f"{failed}: {reason}{'; ' + remedy if remedy else ''}") from None


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
    name, version = name_and_version(uri, tracking_uri=tracking_uri)
    with asking(tracking_uri, f"cannot load {uri} from {tracking_uri}", remedy=remedy) as client:
        source = client.get_model_version_download_uri(name, version)
        tags = client.get_model_version(name, version).tags
        model = download(source, folder=folder, tracking_uri=tracking_uri)
    bundle = model / "artifacts" / ARTIFACT
    if not bundle.is_dir():
        raise RegistryError(f"{uri} holds no bundle of ours; register it with `register`")
    _check_digest(load_card(bundle)[1], tags, uri=uri)
    return bundle


def read_card(version: ModelVersion, *, tracking_uri: str) -> Card:
    """The card among a version's files; weights are not downloaded.

    Raises:
        RegistryError: MLflow cannot be reached, the version holds no bundle of ours or another one
            than was registered.
        BundleError: the card is damaged.
    """
    uri = version.fixed_uri
    with asking(tracking_uri) as client:
        source = client.get_model_version_download_uri(version.name, version.version)
    with tempfile.TemporaryDirectory() as temporary:
        place, folder = f"{source}/artifacts/{ARTIFACT}/{CARD}", Path(temporary)
        with asking(tracking_uri, f"{uri} holds no bundle of ours"):
            path = download(place, folder=folder, tracking_uri=tracking_uri)
        try:
            card, digest = load_card(path.parent)
        except BundleError as error:
            raise BundleError(str(error).replace(str(path), f"{CARD} of {uri}")) from None
    _check_digest(digest, version.lineage, uri=uri)
    return card


def _check_digest(digest: str, tags: Mapping[str, str], *, uri: str) -> None:
    """Refuses a bundle that is not the one that was registered.

    Raises:
        RegistryError: the digest is another than the version's.
    """
    if digest != tags.get("bundle_digest", digest):
        raise RegistryError(
            f"{uri} was registered with bundle {tags['bundle_digest'][:12]}, its files are "
            f"{digest[:12]}; they changed, register the model again"
        )


def name_and_version(uri: str, *, tracking_uri: str) -> tuple[str, str]:
    """Name and number of the version that `models:/NAME@ALIAS` or `models:/NAME/3` means now.

    Raises:
        RegistryError: the URI is neither, or there is no such alias.
    """
    parts = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if parts is None:
        raise RegistryError(f"{uri!r} is no version; write models:/NAME@ALIAS or models:/NAME/3")
    name, alias, version = parts.groups()
    if alias:
        remedy = "give --tracking, or set MLFLOW_TRACKING_URI to the registry"
        with asking(tracking_uri, f"no {uri} at {tracking_uri}", remedy=remedy) as client:
            version = client.get_model_version_by_alias(name, alias).version
    return name, str(version)


def fixed_uri(uri: str, *, tracking_uri: str | None = None) -> str:
    """`models:/NAME/VERSION` of the version that a URI means now; an alias may move later.

    Raises:
        RegistryError: the URI is that of no version, or there is no such alias.
    """
    tracking_uri = tracking_uri or mlflow.get_tracking_uri()
    return "models:/{}/{}".format(*name_and_version(uri, tracking_uri=tracking_uri))


def find_registered(digest: str, *, tracking_uri: str) -> str | None:
    """`models:/NAME/VERSION` of the newest version of a bundle of that digest; None: no version."""
    found = _tagged("bundle_digest", digest, tracking_uri=tracking_uri)
    return found[-1].fixed_uri if found else None


def find_parts(digest: str, *, tracking_uri: str) -> list[ModelVersion]:
    """Versions that were taken out of the model of that bundle digest, oldest first.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    return _tagged("parent_digest", digest, tracking_uri=tracking_uri)


def _tagged(tag: str, value: str, *, tracking_uri: str) -> list[ModelVersion]:
    """Versions with that tag, oldest first."""
    with asking(tracking_uri, f"cannot search {tracking_uri}") as client:
        found = client.search_model_versions(f"tags.{tag} = '{value}'")
        names = {version.name for version in found}
        aliases = {name: client.get_registered_model(name).aliases for name in names}
    versions = [to_version(version, aliases[version.name]) for version in found]
    return sorted(versions, key=lambda version: version.created_ms)


def download_recipe(bundle: Bundle, *, tracking_uri: str | None = None) -> str | None:
    """The recipe in JSON of the run that trained a bundle; None where that is not to be had."""
    if not (run_id := bundle.card.lineage.run_id):
        return None
    uri = tracking_uri or mlflow.get_tracking_uri()
    try:
        text = read_recipe(run_id, tracking_uri=uri)
    except RegistryError as error:
        logger.warning("%s", error)
        return None
    if text is None:
        logger.warning("run %s at %s has no %s", run_id, uri, RECIPE)
    return text


def read_recipe(run_id: str, *, tracking_uri: str) -> str | None:
    """The recipe in JSON among a run's files; None: the run holds none.

    Raises:
        RegistryError: MLflow cannot be reached or has no such run.
    """
    doing = f"cannot read {RECIPE} of run {run_id} at {tracking_uri}"
    with tempfile.TemporaryDirectory() as temporary, asking(tracking_uri, doing) as client:
        if not any(file.path == RECIPE for file in client.list_artifacts(run_id)):
            return None
        place = f"runs:/{run_id}/{RECIPE}"
        path = download(place, folder=Path(temporary), tracking_uri=tracking_uri)
        return path.read_text(encoding="utf-8")
