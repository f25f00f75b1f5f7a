"""What MLflow knows of registered models: all of them, the versions of one, a version's run.

A person writes a version NAME (its newest), NAME/3 or NAME@ALIAS, with or without `models:/`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mlflow.exceptions import MlflowException

from mmtrain.store.models import ModelVersion, RegistryError, asking, check_name, to_version
from pipelines.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run that a version came from; `metrics` are the last values of each."""

    run_id: str
    name: str
    status: str
    started: str
    experiment_id: str
    metrics: Mapping[str, float]


def list_versions(tracking_uri: str, *, name: str | None = None) -> dict[str, list[ModelVersion]]:
    """Registered versions by model, both in order, the newest version first.

    Args:
        tracking_uri: MLflow's URI.
        name: the model; None: all that hold a version.

    Raises:
        RegistryError: MLflow cannot be reached.
        UnknownNameError: there is no such model; names the nearest.
    """
    if name is not None:
        check_name(name)
    one = None if name is None else f"name = '{name}'"
    with asking(tracking_uri) as client:
        models = list(_pages(client.search_registered_models, filter_string=one))
        found = list(_pages(client.search_model_versions, filter_string=one))
    aliases = {model.name: model.aliases for model in models}
    versions: dict[str, list[ModelVersion]] = {}
    for version in sorted(found, key=lambda version: (version.name, -int(version.version))):
        if version.name in aliases:  # not one that was registered between both questions
            held = to_version(version, aliases[version.name])
            versions.setdefault(version.name, []).append(held)
    if name is not None and not versions:
        raise UnknownNameError("registered model", name, tuple(list_versions(tracking_uri)))
    return versions


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
    (versions,) = list_versions(tracking_uri, name=name).values()
    if alias is None and number is None:
        return versions[0]
    kind, wanted = ("alias", alias) if alias else ("version", str(int(number)))
    known = {key: one for one in versions for key in (one.aliases if alias else (one.version,))}
    if wanted not in known:
        raise UnknownNameError(f"{kind} of {name}", alias or number, tuple(known))
    return known[wanted]


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
