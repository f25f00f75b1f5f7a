import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipelines.errors import PlanError
from pipelines.plan import Plan, SequentialPlan
from pipelines.schedule import ScheduleConfig
from pipelines.shards import Manifest
from pipelines.task_order import BucketOrder, bucket_batch_sizes
from tests.pipelines.toy_corpus import build_toy, toy_task

LENGTHS = [1 + (7 * i) % 9 for i in range(37)]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory) -> dict[str, Manifest]:
    data_dir = tmp_path_factory.mktemp("corpora")
    return {
        "plain": build_toy(data_dir, name="plain", lengths=LENGTHS, batch_size=6),
        "bucketed": build_toy(
            data_dir,
            name="bucketed",
            lengths=LENGTHS,
            batch_size=None,
            batch_tokens=200,
            batch_multiple=6,
            bucket_bounds=(4, 8, 12),
        ),
    }


def plan_of(manifests: dict[str, Manifest], **fields) -> Plan:
    settings = {"schedule": ScheduleConfig(name="uniform"), "num_steps": 30, "seed": 3}
    return Plan(manifests=manifests, **(settings | {"shuffle_window": 2} | fields))


def rows_of(plan: Plan, steps: range) -> list[tuple[str, list[int]]]:
    return [(b.task, b.rows.tolist()) for step in steps for b in plan.batches(step)]


def global_sequence(manifests: dict[str, Manifest], world_size: int, accumulation: int) -> list:
    plans = [
        plan_of(manifests, world_size=world_size, rank=rank, accumulation=accumulation)
        for rank in range(world_size)
    ]
    sequence = []
    for step in range(30):
        parts = [plan.batches(step) for plan in plans]
        rows = [row for micro in zip(*parts, strict=True) for p in micro for row in p.rows.tolist()]
        assert len({p.task for micro in parts for p in micro}) == 1
        sequence.append((parts[0][0].task, rows))
    return sequence


def test_epoch_of_a_bucket_is_a_permutation_and_epochs_differ():
    starts = np.array([0, 4, 8, 12, 16, 17])
    order = BucketOrder(starts, groups=np.array([0, 2, 3, 4]), key=(1, "t", 0), window=2)
    rows = order.rows(0, 39)
    members = [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    epochs = [rows[:13].tolist(), rows[13:26].tolist(), rows[26:].tolist()]
    assert all(sorted(epoch) == members for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_rows_are_shuffled_inside_windows_of_row_groups():
    starts = np.arange(0, 404, 4)
    order = BucketOrder(starts, groups=np.arange(100), key=(1, "t", 0), window=5)
    windows = order.rows(0, 400).reshape(20, 20)
    for window in windows:
        assert len(set((window // 4).tolist())) == 5
        assert window.tolist() != sorted(window.tolist())


def test_any_part_of_the_sequence_is_the_same_however_it_is_asked_for():
    starts = np.array([0, 4, 8, 11])
    order = BucketOrder(starts, groups=np.arange(3), key=(1, "t", 0), window=2)
    straight = order.rows(0, 60).tolist()
    assert [order.rows(i, i + 1)[0] for i in reversed(range(60))] == straight[::-1]
    assert order.rows(7, 50).tolist() == straight[7:50]


def test_batches_of_one_bucket_are_consecutive_cuts(manifests):
    plan = plan_of({"plain": manifests["plain"]})
    rows = np.concatenate([plan.global_rows("plain", n) for n in range(37)])
    for epoch in rows.reshape(6, 37):
        assert sorted(epoch.tolist()) == list(range(37))


def test_batch_holds_rows_of_one_bucket_of_its_size(manifests):
    manifest = manifests["bucketed"]
    plan = plan_of({"bucketed": manifest})
    for n in range(40):
        rows = plan.global_rows("bucketed", n)
        groups = np.searchsorted(manifest.group_starts, rows, side="right") - 1
        (bucket,) = set(manifest.group_buckets[groups].tolist())
        assert len(rows) == {0: 24, 1: 12, 2: 6}[bucket]


def test_token_budget_gives_multiples_and_at_least_one():
    task = toy_task(batch_size=None, batch_tokens=200, batch_multiple=6)
    assert bucket_batch_sizes(task, bounds=(4, 8, 12, 64)) == (24, 12, 6, 6)
    with pytest.raises(PlanError, match="give one of batch_size and batch_tokens"):
        bucket_batch_sizes(toy_task(batch_size=6, batch_tokens=200), bounds=(4,))


def test_buckets_take_turns_by_their_sizes(manifests):
    manifest = manifests["bucketed"]
    plan = plan_of({"bucketed": manifest})
    rows = Counter(
        manifest.group_buckets[
            np.searchsorted(manifest.group_starts, plan.global_rows("bucketed", n)[0], "right") - 1
        ]
        for n in range(4 * 300)
    )
    sizes = {0: 24, 1: 12, 2: 6}
    held = Counter()
    for group, bucket in enumerate(manifest.group_buckets):
        held[bucket] += int(manifest.group_starts[group + 1] - manifest.group_starts[group])
    turns = {bucket: max(1, round(held[bucket] / sizes[bucket])) for bucket in held}
    total = sum(turns.values())
    assert rows == {bucket: turns[bucket] * 1200 // total for bucket in turns}


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (3, 1), (1, 2), (1, 3), (3, 2)])
def test_global_ids_do_not_depend_on_ranks_or_accumulation(manifests, world_size, accumulation):
    assert global_sequence(manifests, world_size, accumulation) == global_sequence(manifests, 1, 1)


def test_resumed_from_any_step_equals_straight(manifests):
    straight = plan_of(manifests)
    for step in range(30):
        resumed = plan_of(
            manifests, start_step=step, start_cursors=straight.cursors(step), world_size=1
        )
        assert rows_of(resumed, range(step, 30)) == rows_of(straight, range(step, 30))
        assert resumed.cursors(30) == straight.cursors(30)


def test_cursors_carry_over_to_another_schedule(manifests):
    first = plan_of(manifests)
    other = plan_of(
        manifests,
        schedule=ScheduleConfig(name="weighted", rates={"plain": 4.0}),
        start_step=10,
        start_cursors=first.cursors(10),
    )
    for task in manifests:
        n = first.cursors(10)[task]
        step = next(s for s in range(10, 30) if other.batches(s)[0].task == task)
        batch = other.batches(step)[0]
        assert batch.ordinal == n
        assert batch.rows.tolist() == first.global_rows(task, n).tolist()


def test_accumulating_schedule_gives_a_batch_of_every_task(manifests):
    plan = plan_of(manifests, schedule=ScheduleConfig(name="accumulating"), accumulation=2)
    batches = plan.batches(5)
    assert [b.task for b in batches] == ["plain", "plain", "bucketed", "bucketed"]
    assert [b.micro for b in batches] == [0, 1, 2, 3]
    assert list(plan.micro_tasks(5)) == ["plain", "plain", "bucketed", "bucketed"]
    assert plan.cursors(6) == {"plain": 6, "bucketed": 6}


def test_proportional_plan_goes_by_the_built_corpora_alike_on_all_ranks_and_on_resume(
    manifests, tmp_path
):
    small = build_toy(tmp_path, name="small", lengths=LENGTHS[:12], batch_size=6)
    both = {"plain": manifests["plain"], "small": small}
    schedule = ScheduleConfig(name="proportional")
    plans = [
        plan_of(both, schedule=schedule, num_steps=49, world_size=3, rank=rank) for rank in range(3)
    ]
    assert [plan.cursors(49) for plan in plans] == [{"plain": 37, "small": 12}] * 3
    orders = [[plan.micro_tasks(step) for step in range(49)] for plan in plans]
    assert orders[0] == orders[1] == orders[2]
    resumed = plan_of(
        both,
        schedule=schedule,
        num_steps=49,
        start_step=20,
        start_cursors=plans[0].cursors(20),
    )
    straight = plan_of(both, schedule=schedule, num_steps=49)
    assert rows_of(pickle.loads(pickle.dumps(resumed)), range(20, 49)) == rows_of(
        straight, range(20, 49)
    )


def test_pickled_plan_plans_the_same(manifests):
    plan = plan_of(manifests, world_size=2, rank=1)
    assert rows_of(pickle.loads(pickle.dumps(plan)), range(30)) == rows_of(plan, range(30))


def test_order_follows_the_seed(manifests):
    assert rows_of(plan_of(manifests), range(30)) != rows_of(plan_of(manifests, seed=4), range(30))


def test_batch_size_that_does_not_divide_is_refused_with_the_nearest(manifests):
    with pytest.raises(PlanError, match=r"6 examples does not divide over 4 ranks.*4 or 8"):
        plan_of(manifests, world_size=4)
    with pytest.raises(PlanError, match=r"over 2 ranks times 2 micro-batches; nearest: 4 or 8"):
        plan_of(manifests, world_size=2, accumulation=2)


def test_two_vocabularies_in_one_run_are_refused(manifests):
    other = manifests["bucketed"].model_copy(update={"vocabulary_digest": "another"})
    with pytest.raises(PlanError, match="built with different vocabularies"):
        plan_of({**manifests, "bucketed": other})


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_sequential_plan_reads_each_row_once_in_order(manifests, world_size):
    whole = SequentialPlan(manifests["plain"], batch_size=9, world_size=world_size)
    plans = [replace(whole, rank=rank) for rank in range(world_size)]
    rows = [
        row
        for step in range(whole.num_steps)
        for plan in plans
        for row in plan.batches(step)[0].rows.tolist()
    ]
    assert rows == list(range(37))
    assert [len(plan.batches(4)[0].rows) for plan in plans][:1] == [1 if world_size == 1 else 0]
