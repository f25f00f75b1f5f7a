import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import PlanError
from pipelines.mixture import even_order, shares, tempered
from pipelines.schedule import ScheduleConfig, build_schedule
from pipelines.scheduled import ScheduledTask

PAIR = (ScheduledTask("a"), ScheduledTask("b"))


def furthest(share: np.ndarray, order: np.ndarray) -> float:
    """Largest distance of a row's count from the sum of its shares, over all steps."""
    chosen = order[None] == np.arange(len(share))[:, None]
    return float(np.abs(np.cumsum(chosen, axis=1) - np.cumsum(share, axis=1)).max())


@settings(max_examples=60, deadline=None)
@given(
    num_tasks=st.integers(1, 9),
    num_steps=st.integers(1, 300),
    spread=st.sampled_from([0.1, 0.5, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_counts_keep_within_one_draw_of_any_shares_at_every_step(
    num_tasks, num_steps, spread, seed
):
    share = np.random.default_rng(seed).dirichlet(np.full(num_tasks, spread), size=num_steps).T
    bound = 1 - 1 / (2 * num_tasks - 2) if num_tasks > 1 else 0
    assert furthest(share, even_order(share)) < bound + 1e-5


@settings(max_examples=60, deadline=None)
@given(
    rates=st.lists(st.floats(0.01, 50), min_size=1, max_size=6),
    ends=st.lists(st.floats(0.01, 50), min_size=6, max_size=6),
    between=st.sampled_from(["stepwise", "linear", "exponential"]),
    num_steps=st.integers(10, 200),
)
def test_mixture_keeps_within_one_draw_of_rates_that_change(rates, ends, between, num_steps):
    tasks = tuple(f"task{i}" for i in range(len(rates)))
    points = {
        0: dict(zip(tasks, rates, strict=True)),
        num_steps - 1: dict(zip(tasks, ends, strict=False)),
    }
    config = ScheduleConfig(name="mixture", rates_at=points, between=between)
    schedule = build_schedule(
        config, tasks=[ScheduledTask(task) for task in tasks], num_steps=num_steps, seed=0
    )
    share = shares(points, tasks=tasks, num_steps=num_steps, between=between)
    assert furthest(share, schedule.order.rows[:, 0]) < 1


def test_mixture_of_rates_that_stay_gives_each_task_its_own_steps():
    config = ScheduleConfig(name="mixture")
    own = {"a": 3, "b": 5, "c": 7}
    schedule = build_schedule(
        config, tasks=[ScheduledTask(*task) for task in own.items()], num_steps=15, seed=0
    )
    assert schedule.counts_before(15) == own
    assert "".join(task for s in range(15) for task in schedule.tasks_at(s)) == "cbacbcabccbcabc"


def test_rates_between_two_steps_go_by_steps_lines_or_factors():
    points = {1: {"a": 1.0, "b": 1.0}, 3: {"a": 4.0, "b": 1.0}}
    expected = {
        "stepwise": [1 / 2, 1 / 2, 1 / 2, 4 / 5, 4 / 5],
        "linear": [1 / 2, 1 / 2, 2.5 / 3.5, 4 / 5, 4 / 5],
        "exponential": [1 / 2, 1 / 2, 2 / 3, 4 / 5, 4 / 5],
    }
    for between, share in expected.items():
        found = shares(points, tasks=("a", "b"), num_steps=5, between=between)
        assert found[0].tolist() == pytest.approx(share)
        assert found.sum(axis=0).tolist() == pytest.approx([1] * 5)


def test_temperature_draws_rates_together():
    assert tempered({"a": 16.0, "b": 1.0}, temperature=2) == {"a": 4.0, "b": 1.0}
    config = ScheduleConfig(name="weighted", rates={"a": 16.0, "b": 1.0}, temperature=2)
    schedule = build_schedule(config, tasks=PAIR, num_steps=10, seed=0)
    assert schedule.counts_before(10) == {"a": 8, "b": 2}
    config = ScheduleConfig(name="mixture", rates_at={0: {"a": 16.0}}, temperature=2)
    schedule = build_schedule(config, tasks=PAIR, num_steps=10, seed=0)
    assert schedule.counts_before(10) == {"a": 8, "b": 2}


def test_rates_outside_the_run_are_refused_with_both():
    config = ScheduleConfig(name="mixture", rates_at={0: {"a": 1.0}, 50: {"a": 2.0}})
    with pytest.raises(PlanError, match=r"steps \[0, 50\], the run has steps 0 to 9"):
        build_schedule(config, tasks=PAIR, num_steps=10, seed=0)


def test_long_orders_keep_to_their_shares():
    share = np.repeat(np.random.default_rng(0).dirichlet(np.ones(9))[:, None], 40_000, axis=1)
    order = even_order(share)
    assert order.dtype == np.int16
    assert furthest(share, order) < 1
