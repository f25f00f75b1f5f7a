import time

import numpy as np
import pyarrow as pa
import pytest

from pipelines.plan import Plan, SequentialPlan
from pipelines.schedule import ScheduleConfig
from pipelines.shards import Manifest
from pipelines.stream import (
    ARRAYS,
    SCHEMA,
    TURN_S,
    Paced,
    from_table,
    read_batches,
    to_row,
)
from tests.pipelines.toy_corpus import build_toy

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
    again = from_table(pa.Table.from_pylist([to_row(batch) for batch in batches], SCHEMA))
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
    (again,) = from_table(pa.Table.from_pylist([to_row(last)], SCHEMA))
    assert same(again, last)


def test_a_turn_of_the_scheduling_loop_gives_the_interpreter_back():
    paced, began = Paced(), time.perf_counter()
    for _ in range(4):
        paced.on_execution_step(object())
    assert time.perf_counter() - began >= 3 * TURN_S
