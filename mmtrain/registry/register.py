"""Registration: bundles as versions of a named model in MLflow, each with its lineage.

A version's files are a LoggedModel of the experiment, which also holds what was measured of it,
named as in `results.to_metrics`, and leads to the run that made it.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from mmtrain.bundle import load_bundle
from mmtrain.store.logged_models import add_version, run_of, tell_metrics, upload
from mmtrain.store.models import (
    CANDIDATE,
    ModelVersion,
    RegistryError,
    asking,
    check_name,
    name_and_version,
    to_version,
)

logger = logging.getLogger(__name__)

_CODE = Path(__file__).with_name("serve_model.py")


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
    lineage = bundle.card.lineage
    with asking(tracking_uri, f"cannot register {name} at {tracking_uri}") as client:
        run_id = run_of(client, bundle, run_id=run_id, experiment=experiment, name=name)
        model = upload(client, bundle, folder=folder, run_id=run_id, code=_CODE)
        version = add_version(client, model, bundle, name=name, alias=alias)
        if metrics:
            kept_in = None if lineage.parent else run_id
            tell_metrics(client, model, metrics, step=lineage.step, run_id=kept_in)
    logger.info("registered %s as version %s of %s, alias %s", folder, version.version, name, alias)
    return version


def record(uri: str, metrics: Mapping[str, float], *, tracking_uri: str) -> None:
    """Keeps with a registered version what was measured of it later, in a run of its own.

    Args:
        uri: models:/NAME/VERSION or models:/NAME@ALIAS.
        metrics: named as `results.to_metrics` names them.
        tracking_uri: MLflow's URI.

    Raises:
        RegistryError: there is no such version, or it was registered without a LoggedModel.
    """
    name, number = name_and_version(uri, tracking_uri=tracking_uri)
    with asking(tracking_uri, f"cannot record metrics of {uri} at {tracking_uri}") as client:
        version = to_version(client.get_model_version(name, number), {})
        if version.model_id is None:
            raise RegistryError(f"{uri} has no LoggedModel to hold metrics; register it again")
        model, step = client.get_logged_model(version.model_id), int(version.lineage.get("step", 0))
        tell_metrics(client, model, metrics, step=step, run_id=None)
