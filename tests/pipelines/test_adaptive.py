import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.adaptive import AdaptiveConfig, Mixing, adapted_counts
from pipelines.errors import PlanError
from pipelines.schedule import ScheduleConfig, build_schedule

TASKS = ("a", "b", "c")
EVERY = AdaptiveConfig(decide_every=20, smoothing=0.5)


def laid_out(decisions: dict[int, dict[str, int]], num_steps: int = 90):
    config = ScheduleConfig(name="adaptive", rates_at=decisions, adaptive=EVERY)
    return build_schedule(config, tasks=TASKS, num_steps=num_steps, seed=0)


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
    assert before.order[:40].tolist() == after.order[:40].tolist()
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
