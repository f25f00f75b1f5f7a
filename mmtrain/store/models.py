"""Versions of registered models in MLflow: found by any name, downloaded, checked."""

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from mmtrain.bundle import Bundle, load_bundle, load_card
from mmtrain.store.client import REQUEST_S, connect, download
from pipelines.errors import MMTrainError

logger = logging.getLogger(__name__)

CANDIDATE = "candidate"
ARTIFACT = "bundle"  # name of the bundle among a version's artifacts
_ATTEMPTS = 3


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
        name, version = name_and_version(uri, tracking_uri=tracking_uri)
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


def name_and_version(uri: str, *, tracking_uri: str) -> tuple[str, str]:
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
    remedy = "set MLFLOW_TRACKING_URI to the registry, or give --tracking where there is one"
    with calling(f"no {uri} at {tracking_uri}", remedy=remedy):
        name, version = name_and_version(uri, tracking_uri=tracking_uri)
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
