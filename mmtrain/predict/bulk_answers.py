"""Answers of one part of a batch prediction: read, encode, predict, commit; no Ray here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mmtrain.bundle import BundleTask
from mmtrain.predict.bulk_inputs import InputData, Part, Row, read_rows
from mmtrain.predict.bulk_output import Answer, Format, PartReport, PartWriter
from mmtrain.predict.predictor import Predictor
from pipelines import modalities
from pipelines.errors import BadExampleError

MAX_REASONS = 5  # kept of each part, and shown


@dataclass(frozen=True, slots=True)
class BatchJob:
    """What every actor is told; all of them see the folders."""

    bundle: Path
    digest: str
    data: InputData
    tasks: tuple[str, ...]
    out: Path
    format: Format
    batch_size: int
    beam_size: int


def predict_part(predictor: Predictor, job: BatchJob, part: Part) -> PartReport:
    """Reads, answers and commits one part; no more than a batch of it is in memory."""
    num_failed, failures = 0, Counter[str]()
    with PartWriter(job.out, name=f"part-{part.number:05}", format=job.format) as writer:
        rows = read_rows(job.data, part)
        while batch := list(islice(rows, job.batch_size)):
            answers = answer_rows(predictor, job, batch, part=part)
            writer.write([answer for by_task in answers for answer in by_task])
            for by_task in answers:
                if all(answer.error for answer in by_task):
                    num_failed += 1
                    failures[by_task[0].error or ""] += 1
        num_bytes = writer.commit()
    return PartReport(
        file=writer.name,
        number=part.number,
        first_row=part.first_row,
        num_rows=part.num_rows,
        num_failed=num_failed,
        num_bytes=num_bytes,
        failures=dict(failures.most_common(MAX_REASONS)),
    )


def answer_rows(
    predictor: Predictor, job: BatchJob, rows: Sequence[Row], *, part: Part
) -> list[list[Answer]]:
    """Each row's answers, task by task; a row that cannot be read says why for each."""
    found: list[dict[str, Answer]] = [{} for _ in rows]
    for alike in predictor.tasks_with_same_inputs(job.tasks):
        names = [task.spec.name for task in alike]
        read = [_read(row, task=alike[0], predictor=predictor, part=part) for row in rows]
        good = [place for place, (_, array) in enumerate(read) if isinstance(array, np.ndarray)]
        arrays = [array for _, array in read if isinstance(array, np.ndarray)]
        texts = [text for text, array in read if isinstance(array, np.ndarray)]
        said = (
            predictor.predict_batch(names, arrays, values=texts, beam_size=job.beam_size)
            if arrays
            else []
        )
        by_row = dict(zip(good, said, strict=True))
        for place, (row, (_, why)) in enumerate(zip(rows, read, strict=True)):
            for name in names:
                error = None if place in by_row else str(why)
                prediction = by_row[place][name] if place in by_row else None
                found[place][name] = Answer(
                    row.number, row.origin, row.shown, name, prediction, error
                )
    return [[by_task[name] for name in job.tasks] for by_task in found]


def _read(
    row: Row, *, task: BundleTask, predictor: Predictor, part: Part
) -> tuple[str, np.ndarray | str]:
    """The text of a row, empty where it is none, and its encoded array or why there is none."""
    if row.value is None:
        return "", str(row.problem)
    if isinstance(row.value, np.ndarray):
        return "", task.inputs.finish(row.value)
    try:
        is_written = modalities.is_written(task.inputs.modality)
        raw = _raw(row.value, is_written=is_written, part=part)
        encode = modalities.load(task.inputs.modality).encode
        array = encode(raw, feature=task.inputs, vocabulary=predictor.vocabulary)
        return raw if isinstance(raw, str) else "", array
    except UnicodeDecodeError:
        return "", "not UTF-8"
    except (BadExampleError, OSError) as error:
        return "", str(error)


def _raw(value: str | bytes | Path, *, is_written: bool, part: Part) -> str | bytes:
    """What `encode` takes: a text, or the bytes of the file that a row is or names."""
    if is_written:
        held = value.read_bytes() if isinstance(value, Path) else value
        return held.decode("utf-8") if isinstance(held, bytes) else held
    if isinstance(value, bytes):
        return value
    return (Path(part.files[0]).parent / value).read_bytes()
