import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa
import pytest

from pipelines import stream as stream_module
from pipelines.batch import Batch
from pipelines.batch_table import from_table, to_table
from pipelines.errors import StreamError
from pipelines.plan import BatchPlan, Plan, SequentialPlan
from pipelines.schedule import ScheduleConfig
from pipelines.shards import Manifest
from pipelines.stream import TURN_S, Paced, RangeReader, StreamConfig, read_batches, stream
from tests.pipelines.toy_corpus import build_toy

ARRAYS = [field.name for field in fields(Batch) if field.type is np.ndarray]
LENGTHS = [1 + (7 * i) % 9 for i in range(37)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return build_toy(tmp_path_factory.mktemp("corpora"), lengths=LENGTHS, batch_size=6)


def same(left, right) -> bool:
    heads = (left.step, left.micro, left.task) == (right.step, right.micro, right.task)
    return heads and all(
        np.array_equal(getattr(left, name), getattr(right, name))
        and getattr(left, name).dtype == getattr(right, name).dtype
        for name in ARRAYS
    )


def plan_of(manifest: Manifest, **fields) -> Plan:
    settings = {"schedule": ScheduleConfig(name="alternating"), "num_steps": 12, "seed": 3}
    return Plan(manifests={"copy": manifest}, **(settings | fields))


def test_batch_is_padded_to_its_longest_and_knows_its_examples(manifest):
    batch = next(read_batches(plan_of(manifest)))
    assert batch.inputs.shape == (6, batch.input_lengths.max())
    assert batch.inputs.dtype == np.int32
    for row, length in zip(batch.inputs, batch.input_lengths, strict=True):
        assert row[length - 1] == 1
        assert (row[length:] == 0).all()
    assert np.array_equal(batch.inputs, batch.targets)
    assert batch.example_ids.tolist() == plan_of(manifest).global_rows("copy", 0).tolist()


def test_table_and_back_is_the_same(manifest):
    batches = list(read_batches(plan_of(manifest)))
    again = from_table(to_table(batches))
    assert all(same(left, right) for left, right in zip(again, batches, strict=True))
    assert again[0].inputs.flags.writeable


def test_reading_from_any_step_equals_straight(manifest):
    plan = plan_of(manifest)
    straight = list(read_batches(plan))
    assert len(straight) == 12
    for step in range(12):
        rest = list(read_batches(plan, start_step=step))
        assert all(same(left, right) for left, right in zip(rest, straight[step:], strict=True))


def test_num_steps_ends_the_reading(manifest):
    steps = [b.step for b in read_batches(plan_of(manifest), start_step=3, num_steps=4)]
    assert steps == [3, 4, 5, 6]


def test_sequential_batches_hold_every_example_once(manifest):
    plan = SequentialPlan(manifest, batch_size=10)
    sizes = [len(batch.example_ids) for batch in read_batches(plan)]
    ids = np.concatenate([batch.example_ids for batch in read_batches(plan)])
    assert sizes == [10, 10, 10, 7]
    assert ids.tolist() == list(range(37))


def test_rank_without_rows_gets_a_batch_of_none(manifest):
    plan = SequentialPlan(manifest, batch_size=12, world_size=4, rank=0)
    last = list(read_batches(plan))[-1]
    assert last.inputs.shape[0] == last.example_ids.shape[0] == 0
    assert last.inputs.ndim == 2


def test_batch_of_no_rows_crosses_the_table(manifest):
    plan = SequentialPlan(manifest, batch_size=12, world_size=4, rank=0)
    last = list(read_batches(plan))[-1]
    (again,) = from_table(to_table([last]))
    assert same(again, last)


def test_a_turn_of_the_scheduling_loop_gives_the_interpreter_back():
    paced, began = Paced(), time.perf_counter()
    for _ in range(4):
        paced.on_execution_step(object())
    assert time.perf_counter() - began >= 3 * TURN_S


@dataclass
class LocalDataset:
    """A Dataset's ranges read in this process, a table for each block, as Ray Data hands them on.

    Args:
        tables: numbers of the tables that arrive, in order; None: all.
    """

    plan: BatchPlan
    begin: int
    end: int
    config: StreamConfig
    tables: tuple[int, ...] | None = None

    def iter_batches(self, **_: object) -> Iterator[pa.Table]:
        ranges = pa.Table.from_pylist([{"begin": self.begin, "end": self.end}])
        made = list(RangeReader(self.plan, self.config)(ranges))
        return iter(made if self.tables is None else [made[number] for number in self.tables])


@pytest.fixture
def local(monkeypatch):
    """Streams read without Ray; gives a function that chooses which tables arrive."""
    chosen: dict[str, tuple[int, ...] | None] = {"tables": None}
    monkeypatch.setattr(
        stream_module, "_dataset", lambda *args: LocalDataset(*args, chosen["tables"])
    )
    return lambda *tables: chosen.update(tables=tables)


EVERY_BATCH_A_BLOCK = StreamConfig(block_bytes=1, steps_per_read=3, timeout_s=20)


@pytest.fixture(scope="module")
def pair(manifest, tmp_path_factory) -> dict[str, Manifest]:
    other = build_toy(tmp_path_factory.mktemp("other"), name="other", lengths=LENGTHS, batch_size=6)
    return {"copy": manifest, "other": other}


@pytest.mark.parametrize("schedule", ["alternating", "accumulating"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_stream_loses_no_micro_batch_where_a_block_ends_inside_a_step(
    pair, local, monkeypatch, schedule, accumulation
):
    monkeypatch.setattr(stream_module, "RANGES", 2)  # spans of 6 steps: two of them
    config = ScheduleConfig(name=schedule)
    plan = Plan(pair, config, num_steps=12, seed=3, accumulation=accumulation)
    planned = [
        (b.step, b.micro, b.task, b.rows.tolist()) for i in range(12) for b in plan.batches(i)
    ]
    came = list(stream(plan, config=EVERY_BATCH_A_BLOCK))
    assert [(b.step, b.micro, b.task, b.example_ids.tolist()) for b in came] == planned
    assert len(planned) == 12 * accumulation * (2 if schedule == "accumulating" else 1)


def test_sequential_plan_streams_every_row_once_over_two_spans(manifest, local, monkeypatch):
    monkeypatch.setattr(stream_module, "RANGES", 1)
    came = list(stream(SequentialPlan(manifest, batch_size=6), config=EVERY_BATCH_A_BLOCK))
    assert np.concatenate([batch.example_ids for batch in came]).tolist() == list(range(37))


def test_stream_that_ends_early_is_an_error_that_names_step_and_rank(manifest, local):
    plan = plan_of(manifest, num_steps=2, accumulation=2, world_size=3, rank=2)
    local(0, 1, 2)  # the last micro-batch of step 1 never comes
    came = stream(plan, config=EVERY_BATCH_A_BLOCK)
    assert [(batch.step, batch.micro) for batch in (next(came), next(came), next(came))] == [
        (0, 0), (0, 1), (1, 0),
    ]  # fmt: skip
    with pytest.raises(StreamError, match=r"rank 2: .*before step 1, micro-batch 1 \(copy\)"):
        next(came)


@pytest.mark.parametrize("tables", [(1, 0), (0, 0), (1,)])
def test_batch_that_is_not_the_planned_one_is_an_error_that_names_both(manifest, local, tables):
    plan = replace(plan_of(manifest, num_steps=2), world_size=2, rank=1)
    local(*tables)
    with pytest.raises(StreamError, match=r"rank 1: step [01], .* came in place of step [01], "):
        list(stream(plan, config=EVERY_BATCH_A_BLOCK))
