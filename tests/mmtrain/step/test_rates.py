from math import cos, pi

import pytest

from mmtrain.engines.optim import OptimizerConfig
from mmtrain.step.rates import RateError, check_decays, learning_rate, on_one_clock, step_rates
from tests.pipelines.toy_corpus import toy_task

POLYVIT = OptimizerConfig(name="sgd", schedule="warm_cosine", learning_rate=0.5)


def rates(config, *, num_steps, steps):
    return [learning_rate(config, step=step, num_steps=num_steps) for step in steps]


def test_linear_rate_rises_stays_and_falls_to_zero():
    config = OptimizerConfig(learning_rate=2e-3, warmup_steps=100)
    steps = (0, 49, 99, 100, 600, 800, 1000)
    expected = [2e-5, 1e-3, 2e-3, 2e-3, 2e-3, 1e-3, 0.0]
    assert rates(config, num_steps=1000, steps=steps) == pytest.approx(expected)


def test_last_step_of_a_run_still_learns():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0)
    assert learning_rate(config, step=99, num_steps=100) == pytest.approx(1 / 40)


def test_cosine_rate_is_half_way_down_in_the_middle():
    config = OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_steps=10, decay_start=0.1)
    expected = [1.0, 0.853553, 0.5, 0.0]
    assert rates(config, num_steps=100, steps=(10, 32.5, 55, 100)) == pytest.approx(expected)


def test_constant_rate_stays():
    config = OptimizerConfig(learning_rate=0.5, schedule="constant", warmup_steps=2)
    assert rates(config, num_steps=10, steps=(0, 1, 9)) == [0.25, 0.5, 0.5]


def test_exponential_rate_warms_up_from_a_hundredth_and_falls_by_its_factor():
    config = OptimizerConfig(
        learning_rate=1e-4, schedule="exponential", warmup_steps=100, decay_start=0.5
    )
    steps = (0, 50, 100, 500, 501, 1500)
    expected = [1e-6, 1e-5, 1e-4, 1e-4, 1e-4 * 0.9999955, 1e-4 * 0.9999955**1000]
    assert rates(config, num_steps=1000, steps=steps) == pytest.approx(expected)


def test_exponential_rate_is_that_of_a_walk_step_by_step():
    """0.01 at first, up by one factor to 1 at the end of the warm-up, then 1, then down by c."""
    config = OptimizerConfig(
        learning_rate=3.0, schedule="exponential", warmup_steps=7, decay_start=0.5, decay_factor=0.9
    )
    rate, walked = 3.0 * 0.01, []
    for step in range(40):
        walked.append(rate)
        if step < 7:
            rate *= 100 ** (1 / 7)
        elif step >= 20:
            rate *= 0.9
    assert rates(config, num_steps=40, steps=range(40)) == pytest.approx(walked)


def test_each_step_has_the_rate_of_its_task_on_the_clock_of_the_run():
    tasks = {
        "a": toy_task("a", learning_rate=0.03, warmup_steps=3),
        "b": toy_task("b", learning_rate=0.25, warmup_steps=2),
    }
    config = on_one_clock(POLYVIT, tasks.values())
    owners = {name: ["body/all", f"task/{name}"] for name in tasks}
    order = "abbabbbaab"
    found = []
    for step, name in enumerate(order):
        part = {name: tasks[name]}
        rates = step_rates(config, step=step, num_steps=10, tasks=part, owners=owners)
        assert rates.learning_rates.keys() == {"body/all", f"task/{name}"}
        assert rates.loss_scales == {name: 1.0}
        assert len(set(rates.learning_rates.values())) == 1
        found.append(rates.learning_rates["body/all"])
    base = {"a": 0.03, "b": 0.25}
    assert found == pytest.approx(
        [
            base[name] * min(1, s / 5) * 0.5 * (1 + cos(pi * s / 10))
            for s, name in enumerate(order, start=1)
        ]
    )
    assert found[0] == pytest.approx(0.03 / 5 * 0.975528)  # cos is all but 1 at s = 1
    assert found[-1] == pytest.approx(0)


def test_first_rate_is_a_share_of_the_warm_up_and_the_last_is_zero():
    config = POLYVIT.model_copy(update={"warmup_steps": 47_330})
    first = learning_rate(config, step=0, num_steps=417_920, base=0.03)
    assert first == pytest.approx(0.03 / 47_330, rel=1e-9)
    assert learning_rate(config, step=417_919, num_steps=417_920, base=0.5) == pytest.approx(0)


def test_warm_up_of_a_run_is_the_sum_of_those_that_tasks_name():
    tasks = [toy_task(name, warmup_steps=steps) for name, steps in (("a", 500), ("b", 0))]
    assert on_one_clock(POLYVIT, [*tasks, toy_task("c")]).warmup_steps == 500
    assert on_one_clock(POLYVIT, [toy_task("c")]).warmup_steps == POLYVIT.warmup_steps
    tasks.append(toy_task("d", warmup_steps=100))
    assert on_one_clock(POLYVIT, tasks, tasks_per_step=3).warmup_steps == 200


OWNERS = {"a": ["body/all", "task/a"], "b": ["body/all", "task/b"]}


def rates_of_both(config, **fields):
    tasks = {name: toy_task(name, **fields.get(name, {})) for name in OWNERS}
    return step_rates(config, step=5, num_steps=10, tasks=tasks, owners=OWNERS)


def test_gradients_of_one_step_count_with_the_rates_of_their_tasks():
    config = POLYVIT.model_copy(update={"warmup_steps": 0, "schedule": "constant"})
    rates = rates_of_both(config, a={"learning_rate": 0.1}, b={"learning_rate": 0.3})
    assert rates.learning_rates == pytest.approx({"body/all": 0.2, "task/a": 0.2, "task/b": 0.2})
    effective = {task: scale * 0.2 for task, scale in rates.loss_scales.items()}
    assert effective == pytest.approx({"a": 0.1, "b": 0.3})  # c_j of each gradient


def test_adam_steps_an_owner_at_the_mean_rate_of_its_tasks():
    config = OptimizerConfig(schedule="constant", warmup_steps=0)
    rates = rates_of_both(config, a={"learning_rate": 0.1}, b={"learning_rate": 0.3})
    assert rates.learning_rates == pytest.approx({"body/all": 0.2, "task/a": 0.1, "task/b": 0.3})


def test_equal_rates_scale_no_loss():
    rates = rates_of_both(POLYVIT, a={"learning_rate": 0.1}, b={"learning_rate": 0.1})
    assert rates.loss_scales == {"a": 1.0, "b": 1.0}


def test_a_single_rate_for_steps_of_several_tasks_is_the_optimizers():
    config = POLYVIT.model_copy(
        update={"accumulated_rate": "single", "warmup_steps": 0, "schedule": "constant"}
    )
    rates = rates_of_both(config, a={"learning_rate": 0.1}, b={"learning_rate": 0.3})
    assert set(rates.learning_rates.values()) == {0.5}
    assert rates.loss_scales == {"a": 1.0, "b": 1.0}


def test_betas_are_those_of_the_steps_tasks():
    assert rates_of_both(OptimizerConfig()).decays["betas"] is None
    betas = rates_of_both(OptimizerConfig(betas=(0.9, 0.98)), a={"betas": (0.5, 0.5)}).decays[
        "betas"
    ]
    assert betas == pytest.approx((0.7, 0.74))


def test_momentum_is_that_of_the_steps_tasks():
    assert rates_of_both(POLYVIT).decays["momentum"] is None
    assert rates_of_both(POLYVIT, a={"momentum": 0.5}).decays["momentum"] == pytest.approx(0.7)
    assert (
        rates_of_both(POLYVIT, a={"momentum": 0.0}, b={"momentum": 0.0}).decays["momentum"] == 0.0
    )


def test_decays_of_another_optimizer_are_refused():
    with pytest.raises(
        RateError, match=r"task a: .*sgd has momentum, not betas.*optimizer\.name=adamw"
    ):
        check_decays(POLYVIT, toy_task("a", betas=(0.9, 0.99)))
    with pytest.raises(
        RateError, match=r"task a: .*adamw has betas, not momentum 0.*optimizer\.name=sgd"
    ):
        check_decays(OptimizerConfig(), toy_task("a", momentum=0.0))
    check_decays(POLYVIT, toy_task("a", momentum=0.5))
