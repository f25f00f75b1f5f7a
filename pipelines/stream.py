"""The stream: a plan's batches, read, padded and ready, in the order of the schedule.

One Ray Dataset for each rank. Its rows are ranges of steps, nothing more: the plan is arithmetic,
so the reader that gets a range works out itself which rows of which shards to read. It is one
actor, so open files and decoded row groups stay with it from range to range.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from pydantic import BaseModel, ConfigDict, Field

from pipelines.augment import augment
from pipelines.batch import Batch
from pipelines.batch_table import from_table, to_table
from pipelines.build import quiet_context
from pipelines.errors import MMTrainError, StreamError
from pipelines.modalities import collate
from pipelines.plan import BatchPlan, Plan, PlannedBatch
from pipelines.shards import ShardReader

RANGES = 4096  # ranges of steps in one Ray Dataset; the next Dataset starts where it ends
TURN_S = 0.05  # of the scheduling loop; a turn moves all blocks that are ready


class StreamConfig(BaseModel):
    """How batches reach a rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps_per_read: int = Field(default=64, ge=1, description="Steps that a reader takes at once.")
    block_bytes: int = Field(
        default=2**24, ge=1, description="Batches that travel together, in bytes; at least one."
    )
    prefetch: int = Field(
        default=2, ge=1, description="Blocks unpacked and waiting for the train loop, per rank."
    )
    shuffle_window: int = Field(
        default=16, ge=1, description="Row groups whose rows are shuffled together."
    )
    cache_bytes: int = Field(
        default=2**28, ge=1, description="Decoded row groups a reader keeps, in bytes."
    )
    buffer_bytes: int = Field(
        default=2**28, ge=2**20, description="Object store for a rank's ready batches, in bytes."
    )
    num_readers: int = Field(default=1, ge=1, description="Reading processes of a rank.")
    num_cpus: float = Field(default=1, gt=0, description="Logical CPUs of one reader.")
    timeout_s: float = Field(
        default=300, gt=0, description="Longest wait for a batch before the run stops, seconds."
    )


def read_batches(
    plan: BatchPlan, *, start_step: int = 0, num_steps: int | None = None, cache_bytes: int = 2**28
) -> Iterator[Batch]:
    """The batches of `stream`, read in this process without Ray.

    Args:
        plan: of training, or `SequentialPlan`.
        start_step: first step.
        num_steps: steps to read; None: to the plan's end.
        cache_bytes: decoded row groups kept, in bytes.
    """
    reader = ShardReader(plan.manifests.values(), cache_bytes=cache_bytes)
    for step in range(start_step, _end(plan, start_step, num_steps)):
        for planned in plan.batches(step):
            yield assemble(planned, plan=plan, reader=reader)


def assemble(planned: PlannedBatch, *, plan: BatchPlan, reader: ShardReader) -> Batch:
    """Reads, augments and pads the rows of a planned batch; of no rows, arrays of length 0."""
    rows, task = planned.rows, plan.manifests[planned.task].task
    examples = reader.read(task.name, rows=rows if len(rows) else np.zeros(1, np.int64))
    examples = augment(examples, planned=planned, task=task, seed=plan.seed)
    inputs = collate([example.inputs for example in examples])
    targets = collate([example.targets for example in examples])
    size = len(rows)
    return Batch(
        step=planned.step,
        micro=planned.micro,
        task=planned.task,
        inputs=inputs.values[:size],
        input_lengths=inputs.lengths[:size],
        targets=targets.values[:size],
        target_lengths=targets.lengths[:size],
        example_ids=rows.astype(np.int64),
    )


def stream(
    plan: BatchPlan,
    *,
    start_step: int = 0,
    num_steps: int | None = None,
    cursors: Mapping[str, int] | None = None,
    config: StreamConfig | None = None,
) -> Iterator[Batch]:
    """This rank's batches from `start_step` on, through Ray Data.

    Args:
        plan: of training, or `SequentialPlan`.
        start_step: first step.
        num_steps: steps to read; None: to the plan's end.
        cursors: global batches of each task taken before `start_step`, where a run that goes on
            brings them along; None: as the plan counts them.
        config: None: the defaults.

    Raises:
        StreamError: no batch came within `config.timeout_s`, the readers ended early, or another
            batch came than the planned one; names rank and step.
        CorpusError: a shard changed while it was read.
    """
    config = config or StreamConfig()
    if cursors is not None and isinstance(plan, Plan):
        plan = replace(plan, start_step=start_step, start_cursors=dict(cursors))
    end = _end(plan, start_step, num_steps)
    span = config.steps_per_read * RANGES
    for begin in range(start_step, end, span):
        yield from _stream_ranges(plan, begin, min(begin + span, end), config)


def _end(plan: BatchPlan, start_step: int, num_steps: int | None) -> int:
    return plan.num_steps if num_steps is None else min(plan.num_steps, start_step + num_steps)


def _stream_ranges(plan: BatchPlan, begin: int, end: int, config: StreamConfig) -> Iterator[Batch]:
    """One Ray Dataset over the steps begin .. end-1, pulled by a thread that works ahead."""
    ready: queue.Queue[_Ready] = queue.Queue(maxsize=config.prefetch)
    stopped = threading.Event()
    dataset = _dataset(plan, begin, end, config)
    puller = threading.Thread(target=_pull, args=(dataset, ready, stopped), daemon=True)
    puller.start()
    waiting: deque[Batch] = deque()
    try:
        for step in range(begin, end):
            for micro, task in enumerate(plan.micro_tasks(step)):  # a block may end inside a step
                while not waiting:
                    waiting.extend(_take(ready, plan, _Place(step, micro, task), config.timeout_s))
                batch = waiting.popleft()
                came, planned = _Place.of(batch), _Place(step, micro, task)
                if came != planned:
                    raise StreamError(
                        f"rank {plan.rank}: {came} came in place of {planned}; go on with --resume"
                    )
                yield batch
    finally:
        stopped.set()
        puller.join(timeout=10)  # Ray may be shut down next


class _Place(NamedTuple):
    """Which micro-batch of a plan a batch is."""

    step: int
    micro: int
    task: str

    @classmethod
    def of(cls, batch: Batch) -> "_Place":
        return cls(batch.step, batch.micro, batch.task)

    def __str__(self) -> str:
        return f"step {self.step}, micro-batch {self.micro} ({self.task})"


def _take(
    ready: "queue.Queue[_Ready]", plan: BatchPlan, place: _Place, timeout_s: float
) -> list[Batch]:
    """The next batches, which begin with the one of that place."""
    try:
        taken = ready.get(timeout=timeout_s)
    except queue.Empty:
        tasks = sorted(set(plan.micro_tasks(place.step)))
        raise StreamError(
            f"rank {plan.rank} waited {timeout_s:g} s for step {place.step} (tasks {tasks}); the "
            f"cluster has {ray.available_resources().get('CPU', 0):g} of "
            f"{ray.cluster_resources().get('CPU', 0):g} CPUs free: add CPUs, use fewer workers, "
            "or raise stream.timeout_s where the file system is slow"
        ) from None
    if taken.error is not None:
        raise taken.error
    if taken.ended:
        raise StreamError(
            f"rank {plan.rank}: the readers ended before {place} came; go on with --resume, and "
            "see Ray's log of the reader if it happens again"
        )
    return taken.batches


@dataclass(frozen=True, slots=True)
class _Ready:
    """What the puller hands over: batches, or that there are no more and why."""

    batches: list[Batch]
    error: BaseException | None = None
    ended: bool = False


def _pull(
    dataset: ray.data.Dataset, ready: "queue.Queue[_Ready]", stopped: threading.Event
) -> None:
    """Takes blocks as they become ready until the dataset ends, fails, or nobody wants more."""
    try:
        blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        with closing(_as_generator(blocks)) as tables:
            for table in tables:
                if not _put(ready, _Ready(from_table(table)), stopped):
                    return
        _put(ready, _Ready([], ended=True), stopped)
    except Exception as error:  # handed to the train loop, which raises it
        _put(ready, _Ready([], error), stopped)


def _as_generator(blocks: Iterable[Any]) -> Generator[pa.Table]:
    yield from blocks


def _put(ready: "queue.Queue[_Ready]", item: "_Ready", stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            ready.put(item, timeout=0.5)
        except queue.Full:
            continue
        return True
    return False


def _dataset(plan: BatchPlan, begin: int, end: int, config: StreamConfig) -> ray.data.Dataset:
    """Ranges of steps in; tables of batches out, in order, within this rank's share."""
    starts = range(begin, end, config.steps_per_read)
    ranges = [{"begin": start, "end": min(start + config.steps_per_read, end)} for start in starts]
    context = quiet_context()
    context.target_max_block_size = config.block_bytes
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [cast(Any, Paced)]  # Ray exports no base class
    context.execution_options.resource_limits = ray.data.ExecutionResources(
        cpu=config.num_cpus * config.num_readers, object_store_memory=config.buffer_bytes
    )
    with ray.data.DataContext.current(context):
        return ray.data.from_items(ranges, override_num_blocks=len(ranges)).map_batches(
            RangeReader,
            fn_constructor_args=(plan, config),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=config.num_cpus,
            concurrency=config.num_readers,
        )


class Paced:
    """Callback of Ray Data: one turn of a Dataset's scheduling loop takes `TURN_S` at least.

    The loop is a thread of the process that consumes. While blocks are ready for which the buffer
    has no room it turns without waiting and keeps the interpreter's lock, for which every operator
    of a training step must then wait: the steps of a small model took three times as long.
    """

    def __init__(self) -> None:
        self._turned = 0.0

    def on_execution_step(self, executor: object) -> None:
        """Sleeps for what is left of the turn."""
        time.sleep(max(0.0, self._turned + TURN_S - time.perf_counter()))
        self._turned = time.perf_counter()

    def _ignore(self, *_: object) -> None: ...

    before_execution_starts = after_execution_succeeds = after_execution_fails = _ignore


class RangeReader:
    """Reads ranges of steps; what it opened and decoded stays between calls.

    Args:
        plan: this rank's.
        config: its bounds of memory.
    """

    def __init__(self, plan: BatchPlan, config: StreamConfig) -> None:
        self._plan, self._block_bytes = plan, config.block_bytes
        self._reader = ShardReader(plan.manifests.values(), cache_bytes=config.cache_bytes)

    def __call__(self, ranges: pa.Table) -> Iterator[pa.Table]:
        """Tables of the batches of all steps of `ranges` (columns begin, end).

        What the user must mend travels as a row: Ray would hand on no more than its text.
        """
        items: list[Batch | MMTrainError] = []
        num_bytes = 0
        try:
            for batch in (batch for row in ranges.to_pylist() for batch in self._read(**row)):
                items.append(batch)
                num_bytes += batch.inputs.nbytes + batch.targets.nbytes
                if num_bytes >= self._block_bytes:
                    yield to_table(items)
                    items, num_bytes = [], 0
        except MMTrainError as error:
            items.append(error)
        if items:
            yield to_table(items)

    def _read(self, begin: int, end: int) -> Iterator[Batch]:
        for step in range(begin, end):
            for planned in self._plan.batches(step):
                yield assemble(planned, plan=self._plan, reader=self._reader)
