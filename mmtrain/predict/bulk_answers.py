"""Answers of one part of a batch prediction: read, encode, predict, commit; no Ray here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mmtrain.predict.bulk_inputs import InputData, Part, Row, read_rows
from mmtrain.predict.bulk_output import PartReport, PartWriter, Request, RowAnswer
from mmtrain.predict.predictor import Predictor

MAX_REASONS = 5  # kept of each part, and shown


@dataclass(frozen=True, slots=True)
class BatchJob:
    """What every actor is given; all of them see the folders."""

    bundle: Path
    data: InputData
    out: Path
    request: Request
    batch_size: int


def predict_part(predictor: Predictor, job: BatchJob, part: Part) -> PartReport:
    """Reads, answers and commits one part; no more than a batch of it is in memory."""
    num_failed, failures = 0, Counter[str]()
    with PartWriter(job.out, name=f"part-{part.number:05}", format=job.request.format) as writer:
        rows = read_rows(job.data, part)
        while batch := list(islice(rows, job.batch_size)):
            answers = answer_rows(predictor, job, batch, part=part)
            writer.write([answer for by_task in answers for answer in by_task])
            for by_task in answers:
                if all(answer.error for answer in by_task):
                    num_failed += 1
                    failures[str(by_task[0].error)] += 1
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
) -> list[list[RowAnswer]]:
    """Each row's answers, task by task; a row that cannot be read says why for each."""
    answers = predictor.predict_each(
        job.request.tasks,
        [row.value for row in rows],
        folder=Path(part.files[0]).parent,
        beam_size=job.request.beam_size,
    )
    return [
        [RowAnswer(row.number, row.origin, row.shown, *named) for named in by_task.items()]
        for row, by_task in zip(rows, answers, strict=True)
    ]
