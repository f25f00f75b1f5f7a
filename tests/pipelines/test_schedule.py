import pickle
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.adaptive import AdaptiveConfig
from pipelines.errors import PlanError, UnknownNameError
from pipelines.order import COUNT_EVERY
from pipelines.schedule import (
    SCHEDULES,
    Schedule,
    ScheduleConfig,
    build_schedule,
    run_steps,
)
from pipelines.scheduled import ScheduledTask
from pipelines.step_counts import split_steps
from tests.pipelines.toy_corpus import toy_task

RATES = {"a": 3.0, "b": 5.0, "c": 7.0}
SIZED = (
    ScheduledTask("a", num_steps=3, modality="image", num_examples=9_000),
    ScheduledTask("b", num_steps=5, modality="video", num_examples=1_000),
    ScheduledTask("c", num_steps=7, modality="image", num_examples=4_000),
)


def laid_out(
    name: str, num_steps: int, *, rates: dict[str, float] = RATES, seed: int = 0, **fields
) -> Schedule:
    config = ScheduleConfig(name=name, rates=rates, **fields)
    return build_schedule(config, tasks=tasks_of(*rates), num_steps=num_steps, seed=seed)


def tasks_of(*names: str) -> list[ScheduledTask]:
    return [ScheduledTask(name) for name in names]


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
        tasks=[ScheduledTask(name, count) for name, count in steps.items()],
        num_steps=sum(own),
        seed=seed,
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
    config = ScheduleConfig(name=name, adaptive=AdaptiveConfig(decide_every=15))
    schedule = build_schedule(config, tasks=SIZED, num_steps=45, seed=0)
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
    assert schedule.order.rows.nbytes == 20_000_000
    assert schedule.tasks_at(9_999_999) == ("a",)
    assert schedule.counts_before(9_999_999) == {"a": 3_333_333, "b": 3_333_333, "c": 3_333_333}


def test_split_steps_gives_the_remainder_to_the_largest_fractions():
    assert split_steps(10, rates={"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert split_steps(10, rates={"a": 0.25, "b": 0.27, "c": 0.48}) == {"a": 2, "b": 3, "c": 5}


def test_rates_not_given_are_one():
    config = ScheduleConfig(name="weighted", rates={"a": 3.0})
    schedule = build_schedule(config, tasks=tasks_of("a", "b"), num_steps=8, seed=0)
    assert schedule.counts_before(8) == {"a": 6, "b": 2}


def test_refusals_name_the_remedy():
    with pytest.raises(UnknownNameError, match="nearest: weighted"):
        laid_out("wieghted", 15)
    config = ScheduleConfig(rates={"bb": 1.0})
    with pytest.raises(UnknownNameError, match="no task of the schedule 'bb'"):
        build_schedule(config, tasks=tasks_of("b"), num_steps=5, seed=0)
    with pytest.raises(PlanError, match=r"no mini-batch for \['a'\] in 2; raise num_steps"):
        laid_out("weighted", 2)
    with pytest.raises(PlanError, match="no step 15 in a schedule of 15 steps"):
        laid_out("weighted", 15).tasks_at(15)
    with pytest.raises(ValidationError, match="rates must be positive"):
        ScheduleConfig(rates={"a": 0.0})


def sized(name: str, num_steps: int, tasks=SIZED, **fields) -> dict[str, int]:
    config = ScheduleConfig(name=name, **fields)
    schedule = build_schedule(config, tasks=tasks, num_steps=num_steps, seed=0)
    assert Counter(all_tasks(schedule)) == schedule.counts_before(num_steps)
    return schedule.counts_before(num_steps)


def test_proportional_counts_follow_the_sizes_of_the_corpora_and_not_the_tasks_own_steps():
    assert sized("proportional", 14) == {"a": 9, "b": 1, "c": 4}
    assert sized("proportional", 30) == {"a": 19, "b": 2, "c": 9}  # 19.29, 2.14, 8.57
    # square roots 94.87, 31.62, 63.25 of 30: 15, 5, 10
    assert sized("proportional", 30, temperature=2) == {"a": 15, "b": 5, "c": 10}


def test_equal_modalities_have_as_many_updates_each_shared_by_rates_among_their_tasks():
    assert sized("equal_modalities", 40) == {"a": 6, "b": 20, "c": 14}
    assert sized("equal_modalities", 40, rates={"a": 1.0, "c": 4.0}) == {"a": 4, "b": 20, "c": 16}
    # claim 9: as many of each task of a modality
    assert sized("equal_modalities", 40, temperature=1e9) == {"a": 10, "b": 20, "c": 10}
    assert sized("equal_modalities", 41) == {"a": 6, "b": 20, "c": 15}  # image first: 21


def shared_slowly(total: int, sizes: dict[str, int]) -> dict[str, int]:
    """Largest remainders in whole numbers, one step at a time."""
    whole = sum(sizes.values())
    counts = {name: total * size // whole for name, size in sizes.items()}
    left = {name: total * size % whole for name, size in sizes.items()}
    while sum(counts.values()) < total:
        name = max(left, key=lambda name: left[name])
        counts[name], left[name] = counts[name] + 1, -1
    return counts


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    modalities=st.lists(st.sampled_from(["image", "video", "audio"]), min_size=6, max_size=6),
    extra=st.integers(0, 40),
)
def test_counts_by_size_and_by_modality_equal_those_of_a_slow_twin(sizes, modalities, extra):
    tasks = [
        ScheduledTask(f"task{i}", num_steps=size, modality=modalities[i], num_examples=size)
        for i, size in enumerate(sizes)
    ]
    num_steps = 3 * sum(sizes) * len(sizes) + extra  # every task gets one, whatever its rate
    by_size = {task.name: size for task, size in zip(tasks, sizes, strict=True)}
    assert sized("proportional", num_steps, tasks) == shared_slowly(num_steps, by_size)
    expected: dict[str, int] = {}
    groups = dict.fromkeys(task.modality for task in tasks)
    for modality, total in shared_slowly(num_steps, dict.fromkeys(groups, 1)).items():
        own = {t.name: by_size[t.name] for t in tasks if t.modality == modality}
        expected |= shared_slowly(total, own)
    counts = sized("equal_modalities", num_steps, tasks)
    assert counts == expected
    updates = Counter()
    for task in tasks:
        updates[task.modality] += counts[task.name]
    assert max(updates.values()) - min(updates.values()) <= 1


@pytest.mark.parametrize("name", ["proportional", "equal_modalities"])
def test_orders_by_size_and_by_modality_follow_the_seed_and_nothing_else(name):
    config = ScheduleConfig(name=name)
    orders = [build_schedule(config, tasks=SIZED, num_steps=60, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (all_tasks(pickle.loads(pickle.dumps(order))) for order in orders)
    assert first == again != other


def test_schedules_by_size_and_by_modality_are_refused_where_they_cannot_be():
    unbuilt = [*SIZED[:2], ScheduledTask("c", num_steps=7, modality="image")]
    with pytest.raises(PlanError, match=r"those of \['c'\] are not known: build them"):
        sized("proportional", 14, unbuilt)
    with pytest.raises(PlanError, match=r"schedule\.rates gives \{'a': 2\.0\}.*name=weighted"):
        sized("proportional", 14, rates={"a": 2.0})
    with pytest.raises(PlanError, match=r"15 steps cannot be shared .*use 14 or 28"):
        sized("proportional", 15, remainder="refuse")
    with pytest.raises(PlanError, match=r"no mini-batch for \['b'\] in 5; raise num_steps"):
        sized("proportional", 5)
    with pytest.raises(PlanError, match=r"41 steps .*\['image', 'video'\].*use 40 or 42"):
        sized("equal_modalities", 41, remainder="refuse")
    with pytest.raises(PlanError, match=r"modality image has 12 of 24 steps: .*use 10 or 20"):
        sized("equal_modalities", 24, remainder="refuse")
    with pytest.raises(PlanError, match=r"modality image has 1 of 2 steps: no mini-batch for"):
        sized("equal_modalities", 2)
