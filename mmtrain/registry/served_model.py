"""The pyfunc of a registered version: its files, and what MLflow loads from them and asks.

It is MLflow's "model from code": the bundle and the sources that made it, no pickle. It loads in a
process that has the packages of `REQUIREMENTS` and nothing of ours installed, since the sources of
`mmtrain` and `pipelines` travel with it (`code_paths`) and come first on the path.

It takes a table with columns `task` and `input` (text or the name of a class, or base64 of the
file's bytes for any other modality) and gives one with `text`, `log_prob` (nan where there is
none), `scores`, `labels` and `values` (JSON), `tree` and `mask` (base64 of a PNG file).
"""

import base64
import binascii
import importlib.metadata
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature, set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema

import mmtrain
import pipelines
from mmtrain.bundle import Bundle
from mmtrain.predict.predictor import Predictor
from mmtrain.predict.values import PredictionError
from mmtrain.store.models import ARTIFACT
from mmtrain.store.pyfunc_example import input_example
from pipelines import modalities

REQUIREMENTS = (
    "av", "jiwer", "librosa", "mlflow", "numpy", "pandas", "pillow", "pydantic", "safetensors",
    "soundfile", "soxr", "tokenizers", "torch",
)  # fmt: skip
_COLUMNS = ("text", "log_prob", "scores", "tree", "labels", "values", "mask")


def save_pyfunc(path: Path, bundle: Bundle, *, folder: Path, origin: Model) -> None:
    """Writes a bundle as a pyfunc.

    Args:
        path: folder to write.
        bundle: the bundle.
        folder: where it lies.
        origin: MLflow's ids of the run and LoggedModel that it is of.
    """
    with tempfile.TemporaryDirectory() as temporary:
        mlflow.pyfunc.save_model(
            str(path),
            mlflow_model=origin,
            python_model=str(Path(__file__).with_name("serve_model.py")),
            artifacts={ARTIFACT: str(folder.resolve())},
            code_paths=[str(code) for code in _sources(Path(temporary))],
            signature=signature(),
            input_example=input_example(bundle),
            pip_requirements=[_pinned(package) for package in REQUIREMENTS],
            metadata={"bundle_digest": bundle.digest},
        )


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
        self._predictor = Predictor.load(context.artifacts[ARTIFACT])

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
        if modalities.is_written(self._predictor.task(task).inputs.modality):
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
