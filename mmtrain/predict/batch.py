"""Batch prediction on Ray Data: inputs of any size to a folder of answers, resumable.

One Dataset whose rows are parts, nothing more: a part says where its rows start, so the actor that
gets it reads, answers and commits it by itself, a batch at a time. Each actor loads the model once.
What is killed goes on where it stopped, and ends with the same parts.
"""

import os
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.data
import torch
from pydantic import BaseModel, ConfigDict

from mmtrain.bundle import BundleTask, load_bundle, load_card
from mmtrain.cluster import cluster_of
from mmtrain.predict.bulk_answers import MAX_REASONS, BatchJob, predict_part
from mmtrain.predict.bulk_inputs import InputData, Part, open_input, parts
from mmtrain.predict.bulk_output import COMPLETED, PartReport, Request, open_output, record
from mmtrain.predict.open import bundle_folder
from mmtrain.predict.predictor import Predictor
from mmtrain.predict.values import choose_tasks
from mmtrain.process.environment import environment
from pipelines.build import quiet_context
from pipelines.errors import MMTrainError
from pipelines.files import write_whole

_MAX_BLOCKS = 2000  # parts travel in as many blocks at most; a block's actor takes them in turn

OnProgress = Callable[["BatchProgress"], object]


class BatchError(MMTrainError):
    """A batch prediction cannot begin, or gave no answer at all."""


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far it is, in rows; those that an earlier call answered are among them."""

    done: int
    total: int
    failed: int
    elapsed_s: float


class BatchResult(BaseModel):
    """A batch prediction that has ended. `reasons` counts rows without an answer by why."""

    model_config = ConfigDict(frozen=True)

    out: Path
    tasks: tuple[str, ...]
    num_rows: int
    num_failed: int
    num_parts: int
    resumed_rows: int
    seconds: float
    reasons: dict[str, int]


def batch_predict(
    model: str,
    *,
    data: str,
    out: Path,
    task: str | None = None,
    modality: str | None = None,
    column: str | None = None,
    batch_size: int = 32,
    beam_size: int = 1,
    rows_a_part: int = 1000,
    concurrency: int | None = None,
    address: str | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> BatchResult:
    """Answers all rows of some data; a call that was killed is gone on with by the same call.

    Args:
        model: run folder, bundle folder or models:/NAME@ALIAS.
        data: folder, file, pattern or built split; see `batch_inputs`.
        out: folder of the answers; a name that ends in ".jsonl" holds JSON lines, else Parquet.
        task: task that answers; None: every task of the modality.
        modality: of the inputs; None where the model takes one alone.
        column: of tables.
        batch_size: rows answered together.
        beam_size: beams of text decoding; 1 is greedy.
        rows_a_part: rows of a part at most.
        concurrency: actors, each with the model; None: by the machine.
        address: Ray cluster; None: one on this machine, which ends with the call.
        on_progress: called with how far it is, after each part.

    Raises:
        MMTrainError: of the kind that says what the user can mend.
    """
    began, out = time.monotonic(), out.absolute()
    opened = open_input(data, column=column)
    with bundle_folder(model, beside=out) as (bundle, _):
        card, digest = load_card(bundle)
        request = Request(
            model=digest,
            input=opened.digest,
            column=opened.column,
            tasks=tasks_for(opened, card.tasks, task=task, modality=modality),
            beam_size=beam_size,
            rows_a_part=rows_a_part,
            format="jsonl" if out.suffix == ".jsonl" else "parquet",
            model_uri=model,
            input_uri=opened.uri,
        )
        job = BatchJob(bundle, opened, out, request, batch_size)
        with open_output(out, request) as done:
            todo = list(parts(opened, rows_a_part=rows_a_part))
            missing = [part for part in todo if part.number not in done]
            answered = _answer(missing, job, concurrency=concurrency, address=address)
            reports = list(done.values())
            for progress in _record_all(answered, reports, job=job, todo=todo, began=began):
                on_progress(progress)
            result = _result(reports, job, done=done, seconds=time.monotonic() - began)
            write_whole(out / COMPLETED, result.model_dump_json() + "\n")
    return _checked(result)


def tasks_for(
    data: InputData, tasks: Mapping[str, BundleTask], *, task: str | None, modality: str | None
) -> tuple[str, ...]:
    """The tasks that answer some data; see `choose_tasks`.

    Raises:
        BatchError: a built split has other inputs than the tasks.
    """
    if data.manifest is None:
        files = data.files if data.kind == "files" else ()
        return choose_tasks(tasks, task=task, modality=modality, files=files)
    built = data.manifest.task.inputs
    chosen = choose_tasks(tasks, task=task, modality=modality or built.modality)
    same = tuple(name for name in chosen if tasks[name].inputs.as_asked() == built.as_asked())
    if not same:
        raise BatchError(
            f"{data.uri} was built for {built}, the inputs of {', '.join(chosen)} are others; give "
            "the raw files"
        )
    return same


# ---- on Ray


class PartAnswerer:
    """Answers parts, one after another, with a model that is loaded once; an actor of Ray Data."""

    def __init__(self, job: BatchJob) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self._job = job
        bundle = load_bundle(job.bundle)
        if bundle.digest != job.request.model:
            raise BatchError(f"{job.bundle} changed while it was read; start again")
        self._predictor = Predictor(bundle)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:  # Any: Ray Data's columns
        """A part in, its report out; what is the user's to mend travels as a message."""
        return {"report": self._report(pickle.loads(row["part"]))}

    def _report(self, part: Part) -> bytes:
        try:
            return pickle.dumps(predict_part(self._predictor, self._job, part))
        except (MMTrainError, OSError) as error:
            return pickle.dumps(f"{type(error).__name__}: {error}")


def _answer(
    missing: Sequence[Part], job: BatchJob, *, concurrency: int | None, address: str | None
) -> Iterator[PartReport]:
    """Reports of parts as they are committed, in no fixed order.

    Raises:
        BatchError: there is no room for the actors, or a part cannot be read or written.
    """
    if not missing:
        return
    quiet = {"RAY_BACKEND_LOG_LEVEL": "fatal"}  # Ray Data's actors make it warn
    with environment(quiet), cluster_of(concurrency or 1, address=address) as has:
        gpus = int(has.get("GPU", 0))
        size = concurrency or max(1, gpus or int(has.get("CPU", 1)) // 2)
        size = min(size, len(missing))
        if size > (has_room := gpus or int(has.get("CPU", 0))):
            raise BatchError(
                f"--concurrency {size} needs as many {'GPUs' if gpus else 'CPUs'}, the cluster "
                f"has {has_room}"
            )
        with ray.data.DataContext.current(quiet_context()):
            items = [{"part": pickle.dumps(part)} for part in missing]
            blocks = min(len(items), _MAX_BLOCKS)
            answerer: Any = PartAnswerer  # Ray 2.60's types of `map` leave out classes
            dataset = ray.data.from_items(items, override_num_blocks=blocks).map(
                answerer,
                fn_constructor_args=(job,),
                compute=ray.data.ActorPoolStrategy(size=size),
                num_cpus=0 if gpus else 1,
                num_gpus=1 if gpus else None,
            )
            for row in dataset.iter_rows():
                report = pickle.loads(row["report"])
                if isinstance(report, str):
                    raise BatchError(report)
                yield report


# ---- how far it is, and what came of it


def _record_all(
    answered: Iterable[PartReport],
    reports: list[PartReport],
    *,
    job: BatchJob,
    todo: Sequence[Part],
    began: float,
) -> Iterator[BatchProgress]:
    """Notes each part in the folder and in `reports` as it is committed; how far it is then."""
    total = sum(part.num_rows for part in todo)
    rows, failed = sum(one.num_rows for one in reports), sum(one.num_failed for one in reports)
    yield BatchProgress(rows, total, failed, time.monotonic() - began)
    for report in answered:
        record(job.out, report)
        reports.append(report)
        rows, failed = rows + report.num_rows, failed + report.num_failed
        yield BatchProgress(rows, total, failed, time.monotonic() - began)


def _result(
    reports: Sequence[PartReport], job: BatchJob, *, done: Mapping[int, PartReport], seconds: float
) -> BatchResult:
    reasons: Counter[str] = Counter()
    for report in reports:
        reasons.update(report.failures)
    return BatchResult(
        out=job.out,
        tasks=job.request.tasks,
        num_rows=sum(report.num_rows for report in reports),
        num_failed=sum(report.num_failed for report in reports),
        num_parts=len(reports),
        resumed_rows=sum(report.num_rows for report in done.values()),
        seconds=seconds,
        reasons=dict(reasons.most_common(MAX_REASONS)),
    )


def _checked(result: BatchResult) -> BatchResult:
    """The result, if any row was answered.

    Raises:
        BatchError: none was.
    """
    if result.num_rows == 0:
        raise BatchError("the data has no rows; nothing was predicted")
    if result.num_failed == result.num_rows:
        reason, count = next(iter(result.reasons.items()))
        raise BatchError(
            f"none of {result.num_rows:,} rows could be read; {count:,} of them: {reason}. The "
            f"reasons are in {result.out}; check --input, --column and --task"
        )
    return result
