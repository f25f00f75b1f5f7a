"""Samples: examples with what was predicted for them, in a form that a page can show.

Pictures, videos (as animated pictures) and sounds become `data:` URIs, so that a page needs no
other file. What the model hears may be log-mel, which nobody can play: the recording is then looked
up in the raw corpus.
"""

import base64
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from mmtrain.evaluate.drawing import draw_prediction, draw_target, is_drawn
from mmtrain.evaluate.results import Sample
from mmtrain.predict.answers import Prediction
from mmtrain.predict.predictor import Predictor
from pipelines import modalities, readers
from pipelines.errors import MMTrainError
from pipelines.shards import Example, Manifest

Kind = Literal["text", "image", "audio"]

_SIGNATURES: tuple[tuple[bytes, str, Kind], ...] = (
    (b"\x89PNG", "image/png", "image"),
    (b"RIFF", "audio/wav", "audio"),
)
_MAX_RECORDING_BYTES = 256 * 1024


def sample(
    predictor: Predictor,
    manifest: Manifest,
    row: int,
    *,
    example: Example,
    answer: Prediction,
    data_dir: Path,
) -> Sample:
    """One row of a split with the model's answer.

    Args:
        predictor: whose vocabulary reads the arrays.
        manifest: the split.
        row: row number in the split.
        example: the row's arrays.
        answer: what the model said.
        data_dir: data folder, where the raw corpus may still be.
    """
    task = manifest.task
    decode = modalities.load(task.inputs.modality).decode
    shown = decode(example.inputs, feature=task.inputs, vocabulary=predictor.vocabulary)
    if task.inputs.shows_raw:
        shown = recording(manifest, row, data_dir=data_dir) or shown
    value, kind = as_text(shown)
    drawn: dict[str, str] = {}
    if is_drawn(task.inputs, task.targets):
        true = draw_target(example.inputs, targets=task.targets, array=example.targets)
        predicted = draw_prediction(example.inputs, targets=task.targets, answer=answer)
        drawn = {"reference_picture": as_text(true)[0], "prediction_picture": as_text(predicted)[0]}
    return Sample(
        example_id=row,
        input=value,
        input_kind=kind,
        reference=predictor.decode_target(task.name, example.targets),
        prediction=answer.text,
        log_prob=answer.log_prob,
        **drawn,
    )


def spread(num_examples: int, num_samples: int) -> list[int]:
    """Rows spread evenly over a split.

    >>> spread(10, 3)
    [0, 3, 6]
    """
    num_samples = min(num_samples, num_examples)
    return [place * num_examples // num_samples for place in range(num_samples)]


def recording(manifest: Manifest, row: int, *, data_dir: Path) -> bytes | None:
    """The sound file that a row was built from; None where it is gone or too large for a page."""
    source, origin = manifest.task.source, _origin(manifest, row)
    root = str(data_dir / source.uri / manifest.split)
    try:
        for piece in readers.pieces(source, root=root, rows_a_piece=1):
            if f"{piece.files[0]}:{piece.line}" == origin or piece.files == (origin,):
                found = next(readers.rows(piece)).input
                is_bytes = isinstance(found, bytes)
                return found if is_bytes and len(found) <= _MAX_RECORDING_BYTES else None
    except (MMTrainError, OSError):  # raw corpora need not be kept once built
        return None
    return None


def _origin(manifest: Manifest, row: int) -> str:
    """Where a row comes from: "file:line" or a file, below the split's folder."""
    for shard in manifest.shards:
        rows = shard.num_rows
        if row < rows:
            column = pq.read_table(manifest.folder / shard.file, columns=["origin"])["origin"]
            return str(column[row].as_py())
        row -= rows
    raise AssertionError("row beyond the split")


def as_text(value: object) -> tuple[str, Kind]:
    """What a modality's `decode` gave, as text or as a data URI (RFC 2397), with its kind."""
    if isinstance(value, bytes):
        for signature, media_type, kind in _SIGNATURES:
            if value.startswith(signature):
                data = base64.b64encode(value).decode("ascii")
                return f"data:{media_type};base64,{data}", kind
    return str(value), "text"
