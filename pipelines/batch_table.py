"""Batches as rows of an Arrow table: the form in which they cross from readers to a rank."""

import pickle
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.batch import Batch

ARRAYS = tuple(f.name for f in fields(Batch) if f.type is np.ndarray)

SCHEMA = pa.schema(
    {"step": pa.int64(), "micro": pa.int64(), "task": pa.string(), "error": pa.binary()}
    | {name: pa.large_binary() for name in ARRAYS}
    | {f"{name}_shape": pa.list_(pa.int64()) for name in ARRAYS}
    | {f"{name}_dtype": pa.string() for name in ARRAYS}
)


def to_row(batch: Batch) -> dict[str, object]:
    """A batch as a row of SCHEMA; an array is its bytes, its shape and its dtype."""
    row: dict[str, object] = {"step": batch.step, "micro": batch.micro, "task": batch.task}
    for name in ARRAYS:
        array = np.ascontiguousarray(getattr(batch, name))
        row |= {name: array.data.cast("B") if array.size else b""}
        row |= {f"{name}_shape": array.shape, f"{name}_dtype": array.dtype.str}
    return row


def from_table(table: pa.Table) -> list[Batch]:
    """The batches of a table; arrays are copies, so that no block stays in the object store.

    Raises:
        MMTrainError: the reader's, where it sent one.
    """
    rows = table.drop_columns(list(ARRAYS)).to_pylist()
    for row in rows:
        if row["error"] is not None:
            raise pickle.loads(row["error"])
    return [
        Batch(
            step=row["step"],
            micro=row["micro"],
            task=row["task"],
            **{name: _array(table[name][i], row, name) for name in ARRAYS},
        )
        for i, row in enumerate(rows)
    ]


def _array(cell: pa.Scalar, row: dict[str, Any], name: str) -> np.ndarray:
    flat = np.frombuffer(cell.as_buffer(), np.dtype(row[f"{name}_dtype"]))
    return flat.reshape(row[f"{name}_shape"]).copy()
