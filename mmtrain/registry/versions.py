"""Registered versions as a person acts on them: promoted, downloaded, registered from a folder.

Every call is bounded in time, and what MLflow answers is checked before it is used: a version's
card is the one whose digest it was registered with.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtrain.bundle import find_bundle, load_bundle, load_card
from mmtrain.evaluate.results import RESULTS_FILE, read_results, to_metrics
from mmtrain.files import BUNDLE
from mmtrain.registry.facts import read_version
from mmtrain.registry.promotion import Measurement, Requirement
from mmtrain.registry.register import register as register_bundle
from mmtrain.store.config import TrackingConfig
from mmtrain.store.models import ModelVersion, RegistryError, check_name, fetch
from mmtrain.store.tracking import Tracker
from mmtrain.store.versions import find_run, find_version, set_alias


@dataclass(frozen=True, slots=True)
class Promoted:
    """An alias that was moved: from which version, to which, and what the gate saw."""

    name: str
    version: str
    alias: str
    before: str | None
    fulfilled: Mapping[str, Sequence[Measurement]]


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
    required = [Requirement.read(text) for text in requirements]
    if not re.fullmatch(r"[A-Za-z_][\w-]{0,127}", alias):
        raise RegistryError(f"{alias!r} is no alias; letters, digits, '_' and '-'")
    spec = f"{name}{version}" if version.startswith("@") else f"{name}/{version}"
    facts = read_version(spec, tracking_uri=tracking_uri)
    fulfilled = {one.text: one.check(facts.measurements) for one in required}
    before = set_alias(facts.version, alias, tracking_uri=tracking_uri)
    return Promoted(facts.version.name, facts.version.version, alias, before, fulfilled)


def download(spec: str, *, out: Path, tracking_uri: str, force: bool = False) -> Path:
    """A version's bundle as a folder, checked whole; `out` appears complete or not at all.

    Raises:
        RegistryError: `out` holds something, or MLflow cannot be reached.
        BundleError: what was downloaded is damaged.
        UnknownNameError: no such model, version or alias.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not force)):
        raise RegistryError(f"{out} is not empty; give another --out, or --force to replace it")
    version = find_version(spec, tracking_uri=tracking_uri)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary)
        bundle = fetch(version.fixed_uri, folder=folder, tracking_uri=tracking_uri)
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
    if run_id and find_run(run_id, tracking_uri=tracking_uri) is None:
        return run_id
    config = TrackingConfig(uri=tracking_uri)
    with Tracker.open(config, out=run, name=name, run_id=run_id, resume=True) as tracker:
        tracker.flush(timeout_s=60)
    return run_id or tracker.run_id
