"""Bundles as MLflow's pyfuncs: its "model from code", the bundle and the sources that made it.

There is no pickle. A pyfunc loads in a process that has the packages of `REQUIREMENTS` and nothing
of ours installed, since the sources of `mmtrain` and `pipelines` travel with it (`code_paths`) and
come first on the path.
"""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import Model, ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, Schema

import mmtrain
import pipelines
from mmtrain.bundle import Bundle
from mmtrain.store.models import ARTIFACT
from mmtrain.store.pyfunc_example import input_example

AnswerTable = Callable[[pd.DataFrame], pd.DataFrame]  # columns `task` and `input` to `COLUMNS`

COLUMNS = ("text", "log_prob", "scores", "tree", "labels", "values", "mask")  # of an answer
_OPTIONAL = ("tree", "mask")  # columns that no answer need have
REQUIREMENTS = (
    "av", "jiwer", "librosa", "mlflow", "numpy", "pandas", "pillow", "pydantic", "safetensors",
    "soundfile", "soxr", "tokenizers", "torch",
)  # fmt: skip


class BundleModel(PythonModel):
    """The pyfunc of a bundle; MLflow calls its two methods.

    Args:
        open_bundle: makes of the bundle's folder what answers tables.
    """

    def __init__(self, open_bundle: Callable[[Path], AnswerTable]) -> None:
        self._open_bundle = open_bundle

    def load_context(self, context: PythonModelContext) -> None:
        """Opens the bundle among the version's artifacts."""
        self._answer = self._open_bundle(Path(context.artifacts[ARTIFACT]))

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  # MLflow's has no result type
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # Any: MLflow's own signature
    ) -> pd.DataFrame:
        """Answers a table."""
        return self._answer(model_input)


def serve(open_bundle: Callable[[Path], AnswerTable]) -> None:
    """Names the pyfunc to MLflow, which runs the file that calls this to load a model."""
    set_model(BundleModel(open_bundle))


def save_pyfunc(path: Path, bundle: Bundle, *, folder: Path, origin: Model, code: Path) -> None:
    """Writes a bundle as a pyfunc.

    Args:
        path: folder to write.
        bundle: the bundle.
        folder: where it lies.
        origin: MLflow's ids of the run and LoggedModel that it is of.
        code: the file that MLflow runs to load it, which calls `serve`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        mlflow.pyfunc.save_model(
            str(path),
            mlflow_model=origin,
            python_model=str(code),
            artifacts={ARTIFACT: str(folder.resolve())},
            code_paths=[str(package) for package in _sources(Path(temporary))],
            signature=_signature(),
            input_example=input_example(bundle),
            pip_requirements=[_pinned(package) for package in REQUIREMENTS],
            metadata={"bundle_digest": bundle.digest},
        )


def _sources(temporary: Path) -> list[Path]:
    """Copies of both packages without what Python compiled."""
    copies: list[Path] = []
    for package in (mmtrain, pipelines):
        folder = Path(package.__path__[0])
        copy = temporary / "code" / folder.name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
        copies.append(copy)
    return copies


def _pinned(package: str) -> str:
    version = importlib.metadata.version(package).split("+")[0]  # "2.13.0+cpu" is on no index
    return f"{package}=={version}"


def _signature() -> ModelSignature:
    """Columns of the pyfunc's input and output tables."""

    def column(name: str) -> ColSpec:
        kind = "double" if name == "log_prob" else "string"
        return ColSpec(kind, name, required=name not in _OPTIONAL)

    return ModelSignature(
        inputs=Schema([column(name) for name in ("task", "input")]),
        outputs=Schema([column(name) for name in COLUMNS]),
    )
