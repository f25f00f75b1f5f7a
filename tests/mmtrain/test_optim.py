import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmtrain.optim import (
    OptimizerConfig,
    OwnerAdamW,
    learning_rate,
    owner_rates,
    parameter_groups,
)


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


def test_a_task_has_its_own_scale():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, task_scale={"slow": 0.1})
    assert learning_rate(config, step=0, num_steps=10, task="slow") == pytest.approx(0.1)
    assert learning_rate(config, step=0, num_steps=10, task="other") == 1.0


def test_an_owner_of_two_tasks_gets_the_mean_of_their_rates():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, task_scale={"b": 0.5})
    owners = {"a": ["body", "task/a"], "b": ["body", "task/b"]}
    assert owner_rates(config, step=0, num_steps=9, owners=owners) == {
        "body": 0.75,
        "task/a": 1.0,
        "task/b": 0.5,
    }


def test_groups_are_by_owner_without_what_is_frozen():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].bias.requires_grad_(False)
    groups = parameter_groups(
        model.named_parameters(), owner_of=lambda name: name[0], weight_decay=0.1
    )
    assert [(g["owner"], g["weight_decay"], len(g["params"])) for g in groups] == [
        ("a", 0.0, 1),  # the bias
        ("a", 0.1, 1),
        ("b", 0.1, 1),
    ]


def two_owners(**config):
    parameters = {name: nn.Parameter(torch.ones(3)) for name in ("a", "b")}
    groups = [{"params": [parameter], "owner": name} for name, parameter in parameters.items()]
    return parameters, OwnerAdamW(groups, config=OptimizerConfig(**config))


def test_an_idle_owner_keeps_weights_and_moments_to_the_bit():
    parameters, optimizer = two_owners()
    for owners in (["a", "b"], ["a"], ["a"]):
        for parameter in parameters.values():
            parameter.grad = torch.full((3,), 0.5)
        optimizer.take_part(dict.fromkeys(owners, 1e-2))
        optimizer.step()
        if owners == ["a", "b"]:
            before = parameters["b"].detach().clone()
            moments = {k: v.clone() for k, v in optimizer.state[parameters["b"]].items()}
    assert parameters["b"].equal(before)
    assert all(optimizer.state[parameters["b"]][key].equal(moments[key]) for key in moments)
    assert optimizer.state[parameters["a"]]["step"] == 3


def test_first_adam_step_has_the_size_of_the_learning_rate():
    parameters, optimizer = two_owners()
    parameters["a"].grad = torch.tensor([4.0, -0.1, 2.0])
    optimizer.take_part({"a": 1e-2})
    optimizer.step()
    assert_close(parameters["a"].detach(), torch.tensor([0.99, 1.01, 0.99]))
    assert optimizer.active_rates() == {"a": 1e-2}


def test_states_made_ahead_are_those_of_a_first_step():
    ahead, plain = two_owners(), two_owners()
    ahead[1].create_states(ahead[0].values())
    for parameters, optimizer in (ahead, plain):
        for step in range(3):
            parameters["a"].grad = torch.tensor([1.0, -2.0, 0.1]) * (step + 1)
            optimizer.take_part({"a": 1e-2})
            optimizer.step()
    assert ahead[0]["a"].equal(plain[0]["a"])
