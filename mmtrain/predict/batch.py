"""Batch prediction on Ray Data: inputs of any size to a folder of answers, resumable.

One Dataset whose rows are parts, nothing more: a part says where its rows start, so the actor that
gets it reads, answers and commits it by itself, a batch at a time. Each actor loads the model once.
What is killed goes on where it stopped, and ends with the same parts.
"""

import os
import pickle
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.data
import torch

from mmtrain.bundle import Bundle, BundleTask, find_bundle, load_bundle, load_card
from mmtrain.cluster import cluster_of
from mmtrain.predict.bulk_answers import MAX_REASONS, BatchJob, predict_part
from mmtrain.predict.bulk_inputs import InputData, Part, open_input, parts
from mmtrain.predict.bulk_output import PartReport, Request, complete, open_output, record
from mmtrain.predict.predictor import Predictor
from mmtrain.process.environment import environment
from pipelines import modalities
from pipelines.build import quiet_context
from pipelines.errors import MMTrainError, UnknownNameError

_MAX_BLOCKS = 2000  # parts travel in as many blocks at most; a block's actor takes them in turn

Told = Callable[["BatchProgress"], object]


class BatchError(MMTrainError):
    """A batch prediction cannot begin, or gave no answer at all."""


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far it is, in rows; those that an earlier call answered are among them."""

    done: int
    total: int
    failed: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A batch prediction that has ended. `reasons` counts rows without an answer by why."""

    out: Path
    tasks: tuple[str, ...]
    num_rows: int
    num_failed: int
    num_parts: int
    resumed_rows: int
    seconds: float
    reasons: Mapping[str, int]

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return {
            "out": str(self.out),
            "tasks": list(self.tasks),
            "num_rows": self.num_rows,
            "num_failed": self.num_failed,
            "num_parts": self.num_parts,
            "resumed_rows": self.resumed_rows,
            "seconds": self.seconds,
            "reasons": dict(self.reasons),
        }


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
    told: Told = lambda progress: None,
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
        told: takes how far it is.

    Raises:
        MMTrainError: of the kind that says what the user can mend.
    """
    began = time.monotonic()
    opened = open_input(data, column=column)
    with _local_bundle(model, out=out.absolute()) as bundle:
        card, digest = load_card(bundle)
        tasks = choose_tasks(card.tasks, data=opened, task=task, modality=modality)
        job = BatchJob(
            bundle=bundle.absolute(),
            digest=digest,
            data=opened,
            tasks=tasks,
            out=out.absolute(),
            format="jsonl" if out.suffix == ".jsonl" else "parquet",
            batch_size=batch_size,
            beam_size=beam_size,
        )
        request = Request(
            model=digest,
            input=opened.digest,
            column=opened.column,
            tasks=tasks,
            beam_size=beam_size,
            rows_a_part=rows_a_part,
            format=job.format,
            model_uri=model,
            input_uri=opened.uri,
        )
        with open_output(job.out, request) as done:
            todo = list(parts(opened, rows_a_part=rows_a_part))
            missing = [part for part in todo if part.number not in done]
            reports = _answer(missing, job, concurrency=concurrency, address=address)
            told_all = _noting(reports, todo, done=done, job=job, told=told, began=began)
            result = _result(told_all, job, done=done, seconds=time.monotonic() - began)
            complete(job.out, result.to_dict())
    _check_any(result)
    return result


def choose_tasks(
    tasks: Mapping[str, BundleTask], *, data: InputData, task: str | None, modality: str | None
) -> tuple[str, ...]:
    """The tasks that answer.

    Raises:
        UnknownNameError: the model has no such task or modality.
        BatchError: the model takes several modalities and none is named; or a built split has
            other inputs.
    """
    takes = tuple(dict.fromkeys(one.inputs.modality for one in tasks.values()))
    if task is not None:
        if task not in tasks:
            raise UnknownNameError("task of the model", task, tuple(tasks))
        chosen = (task,)
    else:
        built = data.manifest.task.inputs.modality if data.manifest else None
        named = modalities.named_by_files(data.files) if data.kind == "files" else None
        modality = modality or built or (takes[0] if len(takes) == 1 else named)
        if modality is None:
            raise BatchError(
                f"the model takes {', '.join(takes)}; name the task (--task) or the modality of "
                "the inputs (--modality)"
            )
        if modality not in takes:
            raise UnknownNameError("modality of the model", modality, takes)
        chosen = tuple(name for name, one in tasks.items() if one.inputs.modality == modality)
    if data.manifest is None:
        return chosen
    built = data.manifest.task.inputs.as_asked()
    alike = tuple(name for name in chosen if tasks[name].inputs.as_asked() == built)
    if not alike:
        raise BatchError(
            f"{data.uri} was built for {data.manifest.task.inputs}, the inputs of "
            f"{', '.join(chosen)} are others; give the raw files"
        )
    return alike


# ---- on Ray


class PartAnswerer:
    """Answers parts, one after another, with a model that is loaded once; an actor of Ray Data."""

    def __init__(self, job: BatchJob) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self._job = job
        bundle: Bundle = load_bundle(job.bundle)
        if bundle.digest != job.digest:
            raise BatchError(f"{job.bundle} changed while it was read; start again")
        self._predictor = Predictor(bundle)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:  # Any: Ray Data's columns
        """Parts in, reports out; what is the user's to mend travels as a message."""
        return {"report": [self._report(pickle.loads(part)) for part in batch["part"]]}

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
            dataset = ray.data.from_items(
                items, override_num_blocks=min(len(items), _MAX_BLOCKS)
            ).map_batches(
                PartAnswerer,
                fn_constructor_args=(job,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=size),
                num_cpus=0 if gpus else 1,
                num_gpus=1 if gpus else None,
            )
            for row in dataset.iter_rows():
                report = pickle.loads(row["report"])
                if isinstance(report, str):
                    raise BatchError(report)
                yield report


@contextmanager
def _local_bundle(model: str, *, out: Path) -> Iterator[Path]:
    """The bundle's folder; a registered version is downloaded beside the output, for all actors."""
    if not model.startswith("models:/"):
        yield find_bundle(Path(model))
        return
    from mmtrain.store.models import fetch, fixed_uri  # imports MLflow: seconds

    fixed = fixed_uri(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.model.") as temporary:
        yield fetch(fixed, folder=Path(temporary))


# ---- what is told


def _noting(
    reports: Iterable[PartReport],
    todo: Sequence[Part],
    *,
    done: Mapping[int, PartReport],
    job: BatchJob,
    told: Told,
    began: float,
) -> list[PartReport]:
    """Notes each part in the folder as it is committed, and tells how far it is."""
    total = sum(part.num_rows for part in todo)
    noted = list(done.values())
    rows, failed = sum(one.num_rows for one in noted), sum(one.num_failed for one in noted)
    told(BatchProgress(rows, total, failed, time.monotonic() - began))
    for report in reports:
        record(job.out, report)
        noted.append(report)
        rows, failed = rows + report.num_rows, failed + report.num_failed
        told(BatchProgress(rows, total, failed, time.monotonic() - began))
    return noted


def _result(
    reports: Sequence[PartReport], job: BatchJob, *, done: Mapping[int, PartReport], seconds: float
) -> BatchResult:
    reasons: Counter[str] = Counter()
    for report in reports:
        reasons.update(report.failures)
    return BatchResult(
        out=job.out,
        tasks=job.tasks,
        num_rows=sum(report.num_rows for report in reports),
        num_failed=sum(report.num_failed for report in reports),
        num_parts=len(reports),
        resumed_rows=sum(report.num_rows for report in done.values()),
        seconds=seconds,
        reasons=dict(reasons.most_common(MAX_REASONS)),
    )


def _check_any(result: BatchResult) -> None:
    if result.num_rows == 0:
        raise BatchError("the data has no rows; nothing was predicted")
    if result.num_failed == result.num_rows:
        reason, count = next(iter(result.reasons.items()))
        raise BatchError(
            f"none of {result.num_rows:,} rows could be read; {count:,} of them: {reason}. The "
            f"reasons are in {result.out}; check --input, --column and --task"
        )
