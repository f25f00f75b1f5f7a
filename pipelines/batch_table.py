"""Batches as rows of an Arrow table: the form in which they cross from readers to a rank."""

import pickle
from collections.abc import Sequence

import pyarrow as pa

from pipelines.batch import Batch
from pipelines.errors import MMTrainError

# One pickled item a row: a column for each array took four times as long for small batches
SCHEMA = pa.schema({"item": pa.large_binary()})


def to_table(items: Sequence[Batch | MMTrainError]) -> pa.Table:
    """Batches, perhaps ended by the error that kept the reader from more, as a table."""
    return pa.Table.from_pylist([{"item": pickle.dumps(item)} for item in items], SCHEMA)


def from_table(table: pa.Table) -> list[Batch]:
    """The batches of a table; arrays are copies, so that no block stays in the object store.

    Raises:
        MMTrainError: the reader's, where it sent one.
    """
    items = [pickle.loads(cell.as_buffer()) for cell in table["item"]]
    for item in items:
        if isinstance(item, MMTrainError):
            raise item
    return items
