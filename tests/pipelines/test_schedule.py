import pickle
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.adaptive import AdaptiveConfig
from pipelines.errors import PlanError, UnknownNameError
from pipelines.schedule import (
    COUNT_EVERY,
    SCHEDULES,
    Schedule,
    ScheduleConfig,
    build_schedule,
    run_steps,
    split_steps,
)
from tests.pipelines.toy_corpus import toy_task

RATES = {"a": 3.0, "b": 5.0, "c": 7.0}


def laid_out(
    name: str, num_steps: int, *, rates: dict[str, float] = RATES, seed: int = 0, **fields
) -> Schedule:
    config = ScheduleConfig(name=name, rates=rates, **fields)
    return build_schedule(config, tasks=tuple(rates), num_steps=num_steps, seed=seed)


def all_tasks(schedule: Schedule) -> list[str]:
    return [task for step in range(schedule.num_steps) for task in schedule.tasks_at(step)]


@pytest.mark.parametrize(
    ("name", "num_steps", "counts"),
    [
        ("alternating", 15, {"a": 5, "b": 5, "c": 5}),
        ("uniform", 15, {"a": 5, "b": 5, "c": 5}),
        ("uniform", 16, {"a": 6, "b": 5, "c": 5}),
        ("weighted", 15, {"a": 3, "b": 5, "c": 7}),
        ("task_by_task", 15, {"a": 3, "b": 5, "c": 7}),
        ("accumulating", 5, {"a": 5, "b": 5, "c": 5}),
    ],
)
def test_counts_of_the_example_with_3_5_and_7_steps(name, num_steps, counts):
    schedule = laid_out(name, num_steps)
    assert Counter(all_tasks(schedule)) == counts
    assert schedule.counts_before(num_steps) == counts


def test_alternating_goes_round_in_the_order_of_the_tasks():
    assert all_tasks(laid_out("alternating", 7)) == ["a", "b", "c", "a", "b", "c", "a"]


def test_task_by_task_never_comes_back_to_a_task():
    tasks = all_tasks(laid_out("task_by_task", 15))
    changes = sum(left != right for left, right in pairwise(tasks))
    assert changes == 2


def test_accumulating_takes_every_task_in_every_step():
    schedule = laid_out("accumulating", 4)
    assert [schedule.tasks_at(step) for step in range(4)] == [("a", "b", "c")] * 4


def test_weighted_order_follows_the_seed_and_nothing_else():
    orders = {seed: all_tasks(laid_out("weighted", 150, seed=seed)) for seed in (0, 1)}
    assert orders[0] == all_tasks(pickle.loads(pickle.dumps(laid_out("weighted", 150))))
    assert orders[0] != orders[1]


def test_weighted_order_is_pinned_so_that_runs_outlive_upgrades():
    assert "".join(all_tasks(laid_out("weighted", 15))) == "bbaccccbbcbacac"


@settings(max_examples=40, deadline=None)
@given(
    rates=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    name=st.sampled_from(["weighted", "task_by_task"]),
    seed=st.integers(0, 2**31),
)
def test_each_task_gets_exactly_the_steps_it_asks_for(rates, name, seed):
    steps = {f"task{i}": float(rate) for i, rate in enumerate(rates)}
    schedule = laid_out(name, sum(rates), rates=steps, seed=seed)
    assert Counter(all_tasks(schedule)) == steps


@settings(max_examples=40, deadline=None)
@given(
    own=st.lists(st.integers(1, 20_000), min_size=1, max_size=9),
    name=st.sampled_from(["weighted", "task_by_task", "mixture"]),
    seed=st.integers(0, 2**31),
)
def test_steps_of_own_runs_are_exact_where_the_run_is_as_long_as_all(own, name, seed):
    steps = {f"task{i}": count for i, count in enumerate(own)}
    schedule = build_schedule(
        ScheduleConfig(name=name, remainder="refuse"),
        tasks=tuple(steps),
        num_steps=sum(own),
        seed=seed,
        own_steps=steps,
    )
    assert schedule.counts_before(sum(own)) == steps


@settings(max_examples=40, deadline=None)
@given(own=st.lists(st.integers(1, 500), min_size=1, max_size=9))
def test_accumulating_trains_as_many_mini_batches_as_the_tasks_own_runs(own):
    tasks = [toy_task(f"task{i}", num_steps=count) for i, count in enumerate(own)]
    config = ScheduleConfig(name="accumulating")
    num_steps = run_steps(tasks, config=config)
    assert 0 <= sum(own) - num_steps * len(own) < len(own)
    assert run_steps(tasks, config=ScheduleConfig()) == sum(own)


def test_steps_that_cannot_be_shared_out_are_refused_with_the_numbers():
    with pytest.raises(PlanError, match=r"16 steps .*\['a', 'b', 'c'\].*use 15 or 18, or set"):
        laid_out("uniform", 16, remainder="refuse")
    with pytest.raises(PlanError, match=r"20 steps .*use 15 or 30, or set"):
        laid_out("weighted", 20, remainder="refuse")
    with pytest.raises(PlanError, match=r"no mini-batch for \['c'\] in 2"):
        laid_out("alternating", 2)
    tasks = [toy_task(name, num_steps=count) for name, count in (("a", 3), ("b", 4))]
    config = ScheduleConfig(name="accumulating", remainder="refuse")
    with pytest.raises(PlanError, match=r"7 steps cannot be shared .*use 6 or 8"):
        run_steps(tasks, config=config)
    with pytest.raises(PlanError, match=r"tasks \['b'\] have no num_steps"):
        run_steps([tasks[0], toy_task("b")], config=config)
    with pytest.raises(PlanError, match=r"set schedule\.name=mixture"):
        laid_out("weighted", 15, rates_at={0: {"a": 1.0}})


@settings(max_examples=40, deadline=None)
@given(num_tasks=st.integers(1, 7), num_steps=st.integers(7, 200), seed=st.integers(0, 2**31))
def test_uniform_counts_differ_by_one_at_most(num_tasks, num_steps, seed):
    rates = {f"task{i}": 1.0 for i in range(num_tasks)}
    counts = Counter(all_tasks(laid_out("uniform", num_steps, rates=rates, seed=seed)))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == num_steps


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_counts_before_a_step_are_those_of_the_steps_before_it(name):
    schedule = laid_out(name, 45, adaptive=AdaptiveConfig(decide_every=15))
    seen = Counter({"a": 0, "b": 0, "c": 0})
    for step in range(schedule.num_steps):
        assert schedule.counts_before(step) == seen
        seen.update(schedule.tasks_at(step))


def test_counts_across_stored_blocks():
    schedule = laid_out("weighted", 3 * COUNT_EVERY)
    step = 2 * COUNT_EVERY + 17
    expected = Counter(task for s in range(step) for task in schedule.tasks_at(s))
    assert schedule.counts_before(step) == expected


def test_ten_million_steps_take_two_bytes_a_step():
    schedule = laid_out("alternating", 10_000_000)
    assert schedule.order.nbytes == 20_000_000
    assert schedule.tasks_at(9_999_999) == ("a",)
    assert schedule.counts_before(9_999_999) == {"a": 3_333_333, "b": 3_333_333, "c": 3_333_333}


def test_split_steps_gives_the_remainder_to_the_largest_fractions():
    assert split_steps(10, rates={"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert split_steps(10, rates={"a": 0.25, "b": 0.27, "c": 0.48}) == {"a": 2, "b": 3, "c": 5}


def test_rates_not_given_are_one():
    config = ScheduleConfig(name="weighted", rates={"a": 3.0})
    schedule = build_schedule(config, tasks=("a", "b"), num_steps=8, seed=0)
    assert schedule.counts_before(8) == {"a": 6, "b": 2}


def test_refusals_name_the_remedy():
    with pytest.raises(UnknownNameError, match="nearest: weighted"):
        laid_out("wieghted", 15)
    config = ScheduleConfig(rates={"bb": 1.0})
    with pytest.raises(UnknownNameError, match="no task of the schedule 'bb'"):
        build_schedule(config, tasks=("b",), num_steps=5, seed=0)
    with pytest.raises(PlanError, match=r"no mini-batch for \['a'\] in 2; raise num_steps"):
        laid_out("weighted", 2)
    with pytest.raises(PlanError, match="no step 15 in a schedule of 15 steps"):
        laid_out("weighted", 15).tasks_at(15)
    with pytest.raises(ValidationError, match="rates must be positive"):
        ScheduleConfig(rates={"a": 0.0})
