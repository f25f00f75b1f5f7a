"""Registered versions as a person asks for them: listed, shown, compared, promoted, downloaded.

A version is written NAME (its newest version), NAME/3 or NAME@ALIAS, with or without `models:/`.
Every call is bounded in time, and what MLflow answers is checked before it is used: its card is
the one whose digest the version was registered with.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as Registered
from mlflow.exceptions import MlflowException

from mmtrain.bundle import CARD, BundleError, Card, find_bundle, load_bundle, load_card
from mmtrain.evaluate.results import RESULTS_FILE, read_results, to_metrics
from mmtrain.files import BUNDLE, RECIPE
from mmtrain.registry.facts import ListedModel, Promoted, RunFacts, VersionFacts
from mmtrain.registry.promotion import Measurement, Requirement, to_measurements
from mmtrain.registry.register import register as register_bundle
from mmtrain.registry.served_model import ARTIFACT
from mmtrain.store import models as model_registry
from mmtrain.store.client import download as download_artifact
from mmtrain.store.config import TrackingConfig
from mmtrain.store.models import ModelVersion, RegistryError, asking, calling, check_name
from mmtrain.store.tracking import Tracker, flatten
from pipelines.errors import UnknownNameError


def registry_uri(tracking: str | None, *, beside: Path | None = None) -> str:
    """MLflow's URI: as given, else the store of the run's folder, else MLFLOW_TRACKING_URI.

    Raises:
        RegistryError: none is known, or it names a SQLite file that is not there.
    """
    store = beside / "mlruns.db" if beside else None
    own = f"sqlite:///{store.resolve()}" if store and store.is_file() else None
    uri = tracking or own or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise RegistryError(
            "which registry? give --tracking or set MLFLOW_TRACKING_URI, e.g. "
            "sqlite:///runs/quickstart/mlruns.db or http://127.0.0.1:5000"
        )
    file = uri.removeprefix("sqlite:///")
    if file != uri and not Path(file).is_file():  # MLflow would make an empty one
        raise RegistryError(f"no registry at {uri}: {file} is not there; check --tracking")
    return uri


def list_models(tracking_uri: str) -> list[ListedModel]:
    """All registered models that hold a version, by name.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    with _asking(tracking_uri) as client:
        models = {model.name: model for model in _pages(client.search_registered_models)}
        versions: dict[str, list[Registered]] = {name: [] for name in models}
        for version in _pages(client.search_model_versions):
            versions.setdefault(version.name, []).append(version)
    listed = []
    for name, found in sorted(versions.items()):
        if name not in models or not found:
            continue
        newest = max(found, key=lambda one: int(one.version))
        aliases = {alias: str(version) for alias, version in models[name].aliases.items()}
        listed.append(
            ListedModel(
                name,
                len(found),
                str(newest.version),
                aliases,
                tuple(newest.tags.get("tasks", "").split(",")),
                _when(newest.creation_timestamp),
            )
        )
    return listed


def list_versions(name: str, *, tracking_uri: str) -> list[tuple[ModelVersion, str]]:
    """All versions of a model, newest first, each with when it was registered.

    Raises:
        RegistryError: MLflow cannot be reached.
        UnknownNameError: no such model.
    """
    check_name(name)
    with _asking(tracking_uri) as client:
        found = _versions(client, name)
        aliases = client.get_registered_model(name).aliases
    return [(_version(one, aliases), _when(one.creation_timestamp)) for one in found]


def read_version(spec: str, *, tracking_uri: str) -> VersionFacts:
    """All that is known of a version.

    Raises:
        RegistryError: MLflow cannot be reached, or the version holds no bundle of ours.
        UnknownNameError: no such model, version or alias; names the nearest.
        BundleError: its card is damaged.
    """
    with _asking(tracking_uri) as client:
        found = _find(client, spec)
        aliases = client.get_registered_model(found.name).aliases
        version = _version(found, aliases)
        card = _read_card(client, version)
        run_id = card.lineage.run_id or found.run_id
        run = _read_run(client, run_id)
        model_id = model_registry.logged_model_id(found.source)
        return VersionFacts(
            version=version,
            created=_when(found.creation_timestamp),
            model_id=model_id,
            run=run,
            card=card,
            measurements=tuple(_measured(client, model_id, run=run, card=card)),
            recipe=_read_recipe(client, run),
        )


def promote(
    name: str,
    version: str,
    *,
    alias: str,
    requirements: Sequence[str] = (),
    tracking_uri: str,
) -> Promoted:
    """Moves an alias to a version that fulfils what is required of it.

    Args:
        name: the registered model.
        version: its number, or an alias with "@".
        alias: to move, e.g. "champion".
        requirements: see `promotion`; checked before anything is changed.
        tracking_uri: MLflow's URI.

    Raises:
        RequirementError: one is not fulfilled or cannot be read; says what was measured.
        RegistryError: MLflow cannot be reached or refuses the alias.
        UnknownNameError: no such model or version, or a metric that was not measured.
    """
    asked = [Requirement.read(text) for text in requirements]
    if not re.fullmatch(r"[A-Za-z_][\w-]{0,127}", alias):
        raise RegistryError(f"{alias!r} is no alias; letters, digits, '_' and '-'")
    spec = f"{name}{version}" if version.startswith("@") else f"{name}/{version}"
    facts = read_version(spec, tracking_uri=tracking_uri)
    fulfilled = {one.text: one.check(facts.measurements) for one in asked}
    with _asking(tracking_uri) as client:
        before = client.get_registered_model(facts.version.name).aliases.get(alias)
        client.set_registered_model_alias(facts.version.name, alias, facts.version.version)
    return Promoted(
        facts.version.name,
        facts.version.version,
        alias,
        str(before) if before is not None else None,
        fulfilled,
    )


def download(spec: str, *, out: Path, tracking_uri: str, force: bool = False) -> Path:
    """A version's bundle as a folder, checked whole; `out` appears complete or not at all.

    Raises:
        RegistryError: `out` holds something, or MLflow cannot be reached.
        BundleError: what was downloaded is damaged.
        UnknownNameError: no such model, version or alias.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not force)):
        raise RegistryError(f"{out} is not empty; give another --out, or --force to replace it")
    with _asking(tracking_uri) as client:
        found = _find(client, spec)
    uri = f"models:/{found.name}/{found.version}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        bundle = model_registry.fetch(uri, folder=Path(temporary), tracking_uri=tracking_uri)
        load_bundle(bundle)
        if out.exists():
            shutil.rmtree(out)
        bundle.replace(out)
    return out


def register_run(
    folder: Path, *, name: str | None, alias: str, tracking: str | None
) -> ModelVersion:
    """Registers a run or bundle that lies on disk, with its results; sends what MLflow missed.

    Args:
        folder: a run's, whose journal is delivered first, or a bundle's.
        name: the registered model; None: the recipe's name.
        alias: moved to the version.
        tracking: MLflow's URI; None: the run's own, or MLFLOW_TRACKING_URI.

    Raises:
        BundleError: there is no bundle, or it is damaged.
        RegistryError: MLflow is not known, cannot be reached or refuses.
    """
    bundle = find_bundle(folder)
    run = bundle.parent if bundle.name == BUNDLE else None
    uri = registry_uri(tracking, beside=run)
    card, _ = load_card(bundle)
    name, run_id = name or card.lineage.recipe, card.lineage.run_id
    check_name(name)
    metrics = None
    if run and (run / RESULTS_FILE).is_file():
        results = read_results(run / RESULTS_FILE)
        metrics = to_metrics(results) if results.step == card.lineage.step else None
    if run and (run / "tracking").is_dir():
        run_id = _deliver(run, name=card.lineage.recipe, run_id=run_id, tracking_uri=uri)
    return register_bundle(
        bundle, name=name, tracking_uri=uri, run_id=run_id, alias=alias, metrics=metrics
    )


def _deliver(run: Path, *, name: str, run_id: str | None, tracking_uri: str) -> str | None:
    """Sends what MLflow missed of a finished run to the MLflow that has the run, or to this one if
    none had been reached; the run's id.
    """
    with _asking(tracking_uri) as client:
        if run_id and _read_run(client, run_id) is None:
            return run_id
    config = TrackingConfig(uri=tracking_uri)
    with Tracker.open(config, out=run, name=name, run_id=run_id, resume=True) as tracker:
        tracker.flush(timeout_s=60)
    return run_id or tracker.run_id


@contextmanager
def _asking(tracking_uri: str) -> Iterator[MlflowClient]:
    """A client for a few small questions; its failures are one line."""
    doing = f"the registry at {tracking_uri} does not answer"
    with calling(doing):
        yield asking(tracking_uri)


def _pages(search: Callable[..., Any], **what: Any) -> Iterator[Any]:  # Any: MLflow's own lists
    """All that a search finds, page after page."""
    token = None
    while True:
        page = search(**what, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _find(client: MlflowClient, spec: str) -> Registered:
    """The version that a person means.

    Raises:
        RegistryError: that is not how a version is written.
        UnknownNameError: there is no such model, version or alias.
    """
    parts = re.fullmatch(r"(?:models:/)?([^/@]+)(?:/(\d+)|@([\w-]+))?", spec)
    if parts is None:
        raise RegistryError(f"{spec!r} is no version; write NAME, NAME/3 or NAME@ALIAS")
    name, number, alias = parts.groups()
    check_name(name)
    found = {str(one.version): one for one in _versions(client, name)}
    if alias:
        aliases = {key: str(of) for key, of in client.get_registered_model(name).aliases.items()}
        if alias not in aliases:
            raise UnknownNameError(f"alias of {name}", alias, tuple(aliases))
        return found[aliases[alias]]
    if number is None:
        return next(iter(found.values()))
    if str(int(number)) not in found:
        raise UnknownNameError(f"version of {name}", number, tuple(found))
    return found[str(int(number))]


def _versions(client: MlflowClient, name: str) -> list[Registered]:
    """Versions of a model, newest first.

    Raises:
        UnknownNameError: there is no such model.
    """
    found = list(_pages(client.search_model_versions, filter_string=f"name = '{name}'"))
    if not found:
        known = sorted(model.name for model in _pages(client.search_registered_models))
        raise UnknownNameError("registered model", name, tuple(known))
    return sorted(found, key=lambda one: -int(one.version))


def _version(found: Registered, aliases: Mapping[str, object]) -> ModelVersion:
    own = tuple(alias for alias, of in aliases.items() if str(of) == str(found.version))
    return ModelVersion(found.name, str(found.version), own, found.tags)


def _read_card(client: MlflowClient, version: ModelVersion) -> Card:
    """The card among a version's files; weights are not downloaded."""
    source = client.get_model_version_download_uri(version.name, version.version)
    place = f"models:/{version.name}/{version.version}"
    with tempfile.TemporaryDirectory() as temporary:
        try:
            path = download_artifact(
                f"{source}/artifacts/{ARTIFACT}/{CARD}",
                folder=Path(temporary),
                tracking_uri=client.tracking_uri,
            )
        except (MlflowException, OSError) as error:
            said = str(error).strip().splitlines()[0]
            raise RegistryError(f"{place} holds no bundle of ours: {said}") from None
        try:
            card, digest = load_card(path.parent)
        except BundleError as error:
            raise BundleError(str(error).replace(str(path), f"{CARD} of {place}")) from None
    model_registry.check_digest(digest, version.lineage, uri=place)
    return card


def _read_run(client: MlflowClient, run_id: str | None) -> RunFacts | None:
    if not run_id:
        return None
    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return RunFacts(
        info.run_id, info.run_name or "", info.status, _when(info.start_time), info.experiment_id
    )


def _measured(
    client: MlflowClient, model_id: str | None, *, run: RunFacts | None, card: Card
) -> list[Measurement]:
    """Of the LoggedModel; else of what answers the same: the run that trained the model, or the
    version that it was taken out of without a change (of a cut one, its lineage has facts).
    """
    if model_id:
        metrics = client.get_logged_model(model_id).metrics or []
        newest = sorted(metrics, key=lambda one: (one.step, one.timestamp))
        if found := to_measurements({one.key: one.value for one in newest}):
            return found
    parent = card.lineage.parent
    if card.lineage.facts:
        return []
    if parent and parent.version:
        try:
            whole = read_version(parent.version, tracking_uri=client.tracking_uri).measurements
        except UnknownNameError:  # deleted since
            return []
    else:
        whole = to_measurements(client.get_run(run.run_id).data.metrics) if run else ()
    return [one for one in whole if one.task in card.tasks]


def _read_recipe(client: MlflowClient, run: RunFacts | None) -> dict[str, str]:
    """The recipe of a run as dotted fields."""
    if run is None or not any(file.path == RECIPE for file in client.list_artifacts(run.run_id)):
        return {}
    with tempfile.TemporaryDirectory() as temporary:
        place, uri = f"runs:/{run.run_id}/{RECIPE}", client.tracking_uri
        path = download_artifact(place, folder=Path(temporary), tracking_uri=uri)
        held = json.loads(path.read_text(encoding="utf-8"))
    return flatten(held) if isinstance(held, dict) else {}


def _when(milliseconds: int | None) -> str:
    """A time of MLflow's as a person reads it, in UTC."""
    if not milliseconds:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M")
