import torch
from torch import nn
from torch.testing import assert_close

from mmtrain.engines.optim import OptimizerConfig, OwnerOptimizer, parameter_groups


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
    groups = [
        {"params": [parameter], "owner": name, "weight_decay": 0.0}
        for name, parameter in parameters.items()
    ]
    return parameters, OwnerOptimizer(groups, config=OptimizerConfig(**config))


def test_an_idle_owner_keeps_weights_and_moments_to_the_bit():
    parameters, optimizer = two_owners()
    for owners in (["a", "b"], ["a"], ["a"]):
        for parameter in parameters.values():
            parameter.grad = torch.full((3,), 0.5)
        optimizer.take_part(owners, dict.fromkeys(owners, 1e-2))
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
    optimizer.take_part({"a"}, {"a": 1e-2})
    optimizer.step()
    assert_close(parameters["a"].detach(), torch.tensor([0.99, 1.01, 0.99]))
    assert optimizer.active_rates() == {"a": 1e-2}


def test_states_made_ahead_are_those_of_a_first_step():
    ahead, plain = two_owners(), two_owners()
    ahead[1].create_states(ahead[0].values())
    for parameters, optimizer in (ahead, plain):
        for step in range(3):
            parameters["a"].grad = torch.tensor([1.0, -2.0, 0.1]) * (step + 1)
            optimizer.take_part({"a"}, {"a": 1e-2})
            optimizer.step()
    assert ahead[0]["a"].equal(plain[0]["a"])
