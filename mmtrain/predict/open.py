"""The one place that opens a trained model by any name: a run's folder, a bundle's, models:/..."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmtrain.bundle import Bundle, find_bundle, load_bundle
from mmtrain.files import RECIPE

REGISTERED = "models:/"  # begins the name of a registered version


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A trained model with where it was found.

    Args:
        bundle: the model.
        uri: names this very model, now and later: an absolute folder or models:/NAME/VERSION.
        tracking_uri: MLflow's URI: the registry as it was given, or the store in the run's folder;
            None: neither is known.
    """

    bundle: Bundle
    uri: str
    tracking_uri: str | None

    @property
    def version(self) -> str | None:
        """models:/NAME/VERSION, if the model was opened by such a name."""
        return self.uri if self.uri.startswith(REGISTERED) else None

    def read_recipe_json(self) -> str | None:
        """The recipe of the run that trained the model; None: it is not found."""
        if self.version:
            from mmtrain.store.models import download_recipe  # imports MLflow: seconds

            return download_recipe(self.bundle, tracking_uri=self.tracking_uri)
        path = _run_folder(Path(self.uri)) / RECIPE
        return path.read_text(encoding="utf-8") if path.is_file() else None


def open_model(uri: str | Path, *, tracking_uri: str | None = None) -> OpenedModel:
    """Reads a trained model.

    Args:
        uri: run folder, bundle folder, models:/NAME@ALIAS or models:/NAME/VERSION.
        tracking_uri: the registry, for `models:/`; None: as MLflow is set up.

    Raises:
        BundleError: there is no such bundle, or it changed.
        RegistryError: there is no such version.
    """
    with bundle_folder(uri, tracking_uri=tracking_uri) as (folder, fixed_uri):
        bundle = load_bundle(folder)
    if not fixed_uri.startswith(REGISTERED):
        store = _run_folder(folder) / "mlruns.db"
        tracking_uri = f"sqlite:///{store}" if store.is_file() else None
    return OpenedModel(bundle, fixed_uri, tracking_uri)


@contextmanager
def bundle_folder(
    uri: str | Path, *, tracking_uri: str | None = None, beside: Path | None = None
) -> Generator[tuple[Path, str]]:
    """The folder of a model's bundle, not yet checked, and the name by which it is found again.

    Args:
        uri: as `open_model` takes it.
        tracking_uri: likewise.
        beside: where a registered version is downloaded to, for as long as the context lasts: next
            to this path; None: to the machine's folder for temporary files.

    Raises:
        BundleError: there is no such bundle.
        RegistryError: there is no such version.
    """
    if not str(uri).startswith(REGISTERED):
        folder = find_bundle(Path(uri)).resolve()
        yield folder, str(folder)
        return
    from mmtrain.store.models import fetch, fixed_uri  # imports MLflow: seconds

    version = fixed_uri(str(uri), tracking_uri=tracking_uri)
    if beside:
        beside.parent.mkdir(parents=True, exist_ok=True)
    place, prefix = (beside.parent, f".{beside.name}.model.") if beside else (None, None)
    with tempfile.TemporaryDirectory(dir=place, prefix=prefix) as temporary:
        yield fetch(version, folder=Path(temporary), tracking_uri=tracking_uri), version


def _run_folder(bundle: Path) -> Path:
    """The run's folder: beside `bundle`, or above the `bundles` of a run."""
    return bundle.parent.parent if bundle.parent.name == "bundles" else bundle.parent
