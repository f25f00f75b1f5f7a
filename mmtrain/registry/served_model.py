"""A bundle that answers tables, as MLflow asks and serves it.

It takes a table with columns `task` and `input` (text or the name of a class, or base64 of the
file's bytes for any other modality) and gives one with `text`, `log_prob` (nan where there is
none), `scores`, `labels` and `values` (JSON), `tree` and `mask` (base64 of a PNG file).
"""

import base64
import binascii
import json
from pathlib import Path

import numpy as np
import pandas as pd

from mmtrain.predict.predictor import Predictor
from mmtrain.predict.values import PredictionError
from mmtrain.store.pyfunc import COLUMNS
from pipelines import modalities


class ServedModel:
    """Table in, table out.

    Args:
        folder: the bundle's.
    """

    def __init__(self, folder: Path) -> None:
        self._predictor = Predictor.load(folder)

    def __call__(self, table: pd.DataFrame) -> pd.DataFrame:
        """Answers row by row, in the rows' order; rows of one task are answered together."""
        answers: list[dict[str, object]] = [{} for _ in range(len(table))]
        positions = np.arange(len(table))
        for task, rows in table.assign(row=positions).groupby("task", sort=True):
            values = [self._value(str(task), str(value)) for value in rows["input"]]
            predictions = self._predictor.predict(str(task), values)
            for row, prediction in zip(rows["row"], predictions, strict=True):
                answer = prediction.to_dict()
                answers[row] = answer | {
                    "log_prob": np.nan if answer["log_prob"] is None else answer["log_prob"],
                    **{name: json.dumps(answer[name]) for name in ("scores", "labels", "values")},
                }
        return pd.DataFrame(answers, columns=list(COLUMNS))

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
