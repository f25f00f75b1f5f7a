"""What MLflow knows of registered models: all of them, the versions of one, a version's run.

A person writes a version NAME (its newest), NAME/3 or NAME@ALIAS, with or without `models:/`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mlflow.exceptions import MlflowException

from mmtrain.store.models import ModelVersion, RegistryError, asking, check_name, to_version
from pipelines.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A registered model. `aliases` are versions by alias, `tasks` those of the newest version."""

    name: str
    num_versions: int
    newest: str
    aliases: Mapping[str, str]
    tasks: tuple[str, ...]
    created: str


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run that a version came from; `metrics` are the last values of each."""

    run_id: str
    name: str
    status: str
    started: str
    experiment_id: str
    metrics: Mapping[str, float]


def list_models(tracking_uri: str) -> list[ListedModel]:
    """All registered models that hold a version, by name.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    versions: dict[str, list[Any]] = defaultdict(list)
    with asking(tracking_uri) as client:
        aliases = {model.name: model.aliases for model in _pages(client.search_registered_models)}
        for version in _pages(client.search_model_versions):
            versions[version.name].append(version)
    listed: list[ListedModel] = []
    for name in sorted(versions.keys() & aliases.keys()):
        newest = max(versions[name], key=lambda one: int(one.version))
        listed.append(
            ListedModel(
                name=name,
                num_versions=len(versions[name]),
                newest=str(newest.version),
                aliases={alias: str(version) for alias, version in aliases[name].items()},
                tasks=tuple(newest.tags.get("tasks", "").split(",")),
                created=when(newest.creation_timestamp),
            )
        )
    return listed


def list_versions(name: str, *, tracking_uri: str) -> list[ModelVersion]:
    """All versions of a model, newest first.

    Raises:
        RegistryError: MLflow cannot be reached.
        UnknownNameError: no such model; names the nearest.
    """
    check_name(name)
    with asking(tracking_uri) as client:
        found = list(_pages(client.search_model_versions, filter_string=f"name = '{name}'"))
        if not found:
            known = sorted(model.name for model in _pages(client.search_registered_models))
            raise UnknownNameError("registered model", name, tuple(known))
        aliases = client.get_registered_model(name).aliases
    versions = [to_version(one, aliases) for one in found]
    return sorted(versions, key=lambda version: -int(version.version))


def find_version(spec: str, *, tracking_uri: str) -> ModelVersion:
    """The version that a person means.

    Raises:
        RegistryError: that is not how a version is written, or MLflow cannot be reached.
        UnknownNameError: no such model, version or alias; names the nearest.
    """
    parts = re.fullmatch(r"(?:models:/)?([^/@]+)(?:@([\w-]+)|/(\d+))?", spec)
    if parts is None:
        raise RegistryError(f"{spec!r} is no version; write NAME, NAME/3 or NAME@ALIAS")
    name, alias, number = parts.groups()
    versions = list_versions(name, tracking_uri=tracking_uri)
    if alias is not None:
        by_alias = {alias: version for version in versions for alias in version.aliases}
        if alias not in by_alias:
            raise UnknownNameError(f"alias of {name}", alias, tuple(by_alias))
        return by_alias[alias]
    by_number = {version.version: version for version in versions}
    if number is not None and str(int(number)) not in by_number:
        raise UnknownNameError(f"version of {name}", number, tuple(by_number))
    return by_number[str(int(number))] if number else versions[0]


def set_alias(version: ModelVersion, alias: str, *, tracking_uri: str) -> str | None:
    """Moves an alias to a version; the number of the version that had it, if one did.

    Raises:
        RegistryError: MLflow cannot be reached or refuses the alias.
    """
    with asking(tracking_uri) as client:
        before = client.get_registered_model(version.name).aliases.get(alias)
        client.set_registered_model_alias(version.name, alias, version.version)
    return None if before is None else str(before)


def find_run(run_id: str, *, tracking_uri: str) -> TrackedRun | None:
    """The run of that id; None: MLflow has it no more, or never had.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    with asking(tracking_uri) as client:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
    info = run.info
    return TrackedRun(
        run_id=info.run_id,
        name=info.run_name or "",
        status=info.status,
        started=when(info.start_time),
        experiment_id=info.experiment_id,
        metrics=run.data.metrics,
    )


def model_metrics(model_id: str, *, tracking_uri: str) -> dict[str, float]:
    """What was measured of a LoggedModel, the newest value of each metric.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    with asking(tracking_uri) as client:
        metrics = client.get_logged_model(model_id).metrics or []
    newest_last = sorted(metrics, key=lambda metric: (metric.step, metric.timestamp))
    return {metric.key: metric.value for metric in newest_last}


def when(milliseconds: int | None) -> str:
    """A time of MLflow's as a person reads it, in UTC."""
    if not milliseconds:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M")


def _pages(search: Callable[..., Any], **what: Any) -> Iterator[Any]:  # Any: MLflow's own lists
    """All that a search finds, page after page."""
    token = None
    while True:
        page = search(**what, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
