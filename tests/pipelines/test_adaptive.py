from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import order
from pipelines import schedule as schedule_module
from pipelines.adaptive import AdaptiveConfig, Mixing, adapted_counts
from pipelines.errors import PlanError
from pipelines.mixture import even_order
from pipelines.order import WholeOrder
from pipelines.schedule import ScheduleConfig, build_schedule
from pipelines.scheduled import ScheduledTask

TASKS = ("a", "b", "c")
EVERY = AdaptiveConfig(decide_every=20, smoothing=0.5)


def laid_out(decisions: dict[int, dict[str, int]], num_steps: int = 90):
    config = ScheduleConfig(name="adaptive", rates_at=decisions, adaptive=EVERY)
    return build_schedule(
        config, tasks=[ScheduledTask(task) for task in TASKS], num_steps=num_steps, seed=0
    )


def test_tasks_with_more_of_their_loss_left_get_more_steps():
    losses, first = {"a": 2.0, "b": 0.5, "c": 1.0}, {"a": 2.0, "b": 2.0, "c": 1.0}
    rates = dict.fromkeys(TASKS, 1.0)
    # of 17 steps beside one each, 4/9, 1/9 and 4/9: 7.56, 1.89, 7.56
    counts = adapted_counts(losses, first=first, rates=rates, config=EVERY)
    assert counts == {"a": 9, "b": 3, "c": 8}


def test_power_zero_leaves_the_rates_alone():
    config = EVERY.model_copy(update={"power": 0.0, "decide_every": 23})
    counts = adapted_counts(
        {"a": 9.0, "b": 1.0}, first={"a": 1.0, "b": 1.0}, rates={"a": 2.0, "b": 1.0}, config=config
    )
    assert counts == {"a": 15, "b": 8}


@settings(max_examples=60, deadline=None)
@given(
    losses=st.lists(st.floats(0, 100), min_size=3, max_size=3),
    first=st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
    every=st.integers(3, 200),
)
def test_every_task_keeps_a_step_and_counts_sum_to_the_segment(losses, first, every):
    counts = adapted_counts(
        dict(zip(TASKS, losses, strict=True)),
        first=dict(zip(TASKS, first, strict=True)),
        rates=dict.fromkeys(TASKS, 1.0),
        config=AdaptiveConfig(decide_every=every),
    )
    assert sum(counts.values()) == every
    assert min(counts.values()) >= 1


def test_a_decision_changes_no_step_before_it():
    later = {20: {"a": 10, "b": 5, "c": 5}, 40: {"a": 1, "b": 1, "c": 18}}
    before, after = laid_out({20: later[20]}), laid_out(later)
    assert all(before.tasks_at(step) == after.tasks_at(step) for step in range(40))
    assert after.counts_before(60) == {
        "a": 7 + 10 + 1, "b": 7 + 5 + 1, "c": 6 + 5 + 18,
    }  # fmt: skip


def test_counts_keep_within_one_draw_of_the_decisions_at_every_step():
    decisions = {20: {"a": 10, "b": 5, "c": 5}, 60: {"a": 1, "b": 1, "c": 18}}
    schedule = laid_out(decisions)
    held, target = {"a": 7, "b": 7, "c": 6}, dict.fromkeys(TASKS, 0.0)
    for step in range(90):
        held = decisions.get(step, held)
        target = {task: target[task] + held[task] / 20 for task in TASKS}
        counts = schedule.counts_before(step + 1)
        assert all(abs(counts[task] - target[task]) < 1 for task in TASKS)


def test_losses_are_smoothed_and_the_first_are_kept():
    rates = dict.fromkeys(TASKS, 1.0)
    mixing = Mixing()
    for losses in ({"a": 4.0}, {"a": 2.0, "b": 1.0}, {"c": 1.0}):
        mixing = mixing.with_losses(losses)
    mixing = mixing.decided(20, rates=rates, config=EVERY)
    assert mixing.smoothed == mixing.first == {"a": 3.0, "b": 1.0, "c": 1.0}
    mixing = mixing.with_losses({"a": 1.0}).decided(40, rates=rates, config=EVERY)
    assert mixing.smoothed == {"a": 2.0, "b": 1.0, "c": 1.0}
    assert mixing.first["a"] == 3.0
    assert list(mixing.decisions) == [20, 40]
    assert mixing.decisions[40]["a"] < mixing.decisions[20]["a"]


def test_what_is_known_survives_json_to_the_bit():
    mixing = Mixing().with_losses({"a": 0.1 + 0.2, "b": 1 / 3, "c": 1e-17})
    mixing = mixing.decided(20, rates=dict.fromkeys(TASKS, 1.0), config=EVERY)
    mixing = mixing.with_losses({"b": 2 / 3})
    assert Mixing.model_validate_json(mixing.model_dump_json()) == mixing


def test_segments_too_short_for_the_tasks_are_refused_with_the_numbers():
    with pytest.raises(PlanError, match="decide_every=2 steps have no mini-batch for each of 3"):
        adapted_counts(
            dict.fromkeys(TASKS, 1.0), first=dict.fromkeys(TASKS, 1.0),
            rates=dict.fromkeys(TASKS, 1.0), config=AdaptiveConfig(decide_every=2),
        )  # fmt: skip
    with pytest.raises(PlanError, match=r"decisions at steps \[30\]"):
        laid_out({30: {"a": 10, "b": 5, "c": 5}})


def counts_at(step: int) -> dict[str, int]:
    """What is decided at a step; no two decisions are alike."""
    return {"a": 1 + step // 20, "b": 1, "c": 18 - step // 20}


def test_steps_laid_out_grow_with_the_run_and_not_with_the_decisions(monkeypatch):
    laid: list[int] = []

    class Counted(WholeOrder):
        def __init__(self, rows, *, num_tasks):
            laid.append(len(rows))
            super().__init__(rows, num_tasks=num_tasks)

    monkeypatch.setattr(order, "WholeOrder", Counted)
    monkeypatch.setattr(schedule_module, "WholeOrder", Counted)
    order._even_segment.cache_clear()
    decided: dict[int, dict[str, int]] = {}
    num_steps = 320
    for start in range(0, num_steps, 20):
        decided |= {start: counts_at(start)} if start else {}
        schedule = laid_out(decided, num_steps)
        before = schedule.counts_before(start)
        for step in range(start, start + 20):
            (task,) = schedule.tasks_at(step)
            assert schedule.counts_before(step) == before
            before[task] += 1
    assert sum(laid) == num_steps


def test_order_of_segments_equals_one_laid_out_step_by_step():
    decided = {20: counts_at(20), 60: counts_at(60), 80: counts_at(80)}
    schedule, expected = laid_out(decided, 130), []
    for start in range(0, 140, 20):
        held = decided.get(max((at for at in decided if at <= start), default=0))
        counts = list(held.values()) if held else [7, 7, 6]
        share = np.repeat(np.array(counts)[:, None] / 20, 20, axis=1)
        expected += [TASKS[number] for number in even_order(share)]
    assert [schedule.tasks_at(step)[0] for step in range(130)] == expected[:130]
    counted = Counter(dict.fromkeys(TASKS, 0))
    for step in range(131):
        assert schedule.counts_before(step) == counted
        counted.update(schedule.tasks_at(step) if step < 130 else ())


def test_decisions_stay_as_they_were_where_the_length_of_segments_is_changed():
    config = ScheduleConfig(
        name="adaptive",
        rates_at={20: {"a": 10, "b": 5, "c": 5}, 30: {"a": 2, "b": 4, "c": 4}},
        adaptive=AdaptiveConfig(decide_every=10),
    )
    tasks = [ScheduledTask(task) for task in TASKS]
    schedule = build_schedule(config, tasks=tasks, num_steps=50, seed=0)
    before = Counter(dict.fromkeys(TASKS, 0))
    for step in range(50):
        assert schedule.counts_before(step) == before
        before.update(schedule.tasks_at(step))
    assert {t: schedule.counts_before(50)[t] - schedule.counts_before(30)[t] for t in TASKS} == {
        "a": 4, "b": 8, "c": 8,
    }  # fmt: skip
