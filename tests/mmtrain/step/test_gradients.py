import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from mmtrain.engines import EngineConfig, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.step.gradients import (
    BalancingError,
    ProjectedGradients,
    build_gradients,
    check_balancing,
    projected_sum,
)
from pipelines.schedule import ScheduleConfig
from pipelines.shuffle import keyed_order
from tests.mmtrain.engines.toy import TASKS, global_batch, toy_model

PLAIN = OptimizerConfig(name="sgd", clip_norm=0.0, momentum=0.0)


def slow_projected_sum(gradients: list[torch.Tensor], orders: dict[int, list[int]]):
    """Algorithm 1 of arXiv:2001.06782 as it is written."""
    projected = []
    for i, own in enumerate(gradients):
        gradient = own.clone()
        for j in orders[i]:
            if j != i and gradient @ gradients[j] < 0:
                gradient -= (gradient @ gradients[j]) / gradients[j].norm() ** 2 * gradients[j]
        projected.append(gradient)
    return torch.stack(projected).sum(dim=0)


@pytest.mark.parametrize("seed", range(10))
def test_projection_is_that_of_the_algorithm(seed):
    generator = torch.Generator().manual_seed(seed)
    rows_TD = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    orders = {i: keyed_order(5, key=(seed, i)).tolist() for i in range(5)}
    assert_close(projected_sum(rows_TD, orders=orders), slow_projected_sum([*rows_TD], orders))


def test_gradients_that_agree_are_summed_as_they_are():
    rows_TD = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert projected_sum(rows_TD, orders={0: [0, 1], 1: [0, 1]}).tolist() == [2.0, 1.0]


def test_of_two_that_conflict_neither_works_against_the_other():
    rows_TD = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    total = projected_sum(rows_TD, orders={0: [1], 1: [0]})
    assert total.tolist() == pytest.approx([0.5, 1.5])  # (1/2, 1/2) and (0, 1)
    assert (rows_TD @ total >= 0).all()


def loss_of(engine, task: str) -> torch.Tensor:
    inputs, labels = global_batch(TASKS.index(task), 0)
    logits = engine.forward(task=task, inputs=inputs).logits
    return functional.cross_entropy(logits, labels)


def test_body_gets_the_projected_gradient_and_the_rest_the_sum():
    engine = build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=PLAIN)
    model = engine.model
    names, parameters = zip(*model.named_parameters(), strict=True)
    by_task = [
        dict(zip(names, torch.autograd.grad(loss_of(engine, t), parameters, allow_unused=True),
                 strict=True))
        for t in TASKS
    ]  # fmt: skip
    gradients = ProjectedGradients(engine, seed=4)
    for task in TASKS:
        gradients.add(task, loss_of(engine, task) / 2)  # two micro-batches of a task
        gradients.add(task, loss_of(engine, task) / 2)
    gradients.finish(step=3)

    shared = [n for n in names if model.parameter_owner(n).split("/")[0] in ("body", "experts")]
    flat = [torch.cat([held[name].flatten() for name in shared]) for held in by_task]
    order = sorted(TASKS)
    orders = {i: keyed_order(2, key=(4, "pcgrad", 3, t)).tolist() for i, t in enumerate(order)}
    expected = slow_projected_sum([flat[TASKS.index(task)] for task in order], orders)
    found = torch.cat([model.get_parameter(name).grad.flatten() for name in shared])
    assert_close(found, expected)
    for name in set(names) - set(shared):
        held = [own[name] for own in by_task if own[name] is not None]
        assert_close(model.get_parameter(name).grad, torch.stack(held).sum(dim=0))


def test_plain_gradients_of_accumulated_tasks_are_those_of_the_summed_losses():
    engine = build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=PLAIN)
    gradients = build_gradients("none", engine=engine, seed=0)
    for task in TASKS:
        gradients.add(task, loss_of(engine, task))
    gradients.finish(0)
    found = {name: p.grad.clone() for name, p in engine.model.named_parameters()}
    engine.model.zero_grad()
    torch.stack([loss_of(engine, task) for task in TASKS]).sum().backward()
    for name, parameter in engine.model.named_parameters():
        assert_close(found[name], parameter.grad)


@pytest.mark.parametrize(
    ("balancing", "engine", "schedule", "remedy"),
    [
        ("uncertainty", {"zero_stage": 3}, "weighted", "engine.zero_stage=2"),
        ("pcgrad", {"zero_stage": 3}, "accumulating", "engine.zero_stage=2"),
        ("pcgrad", {"zero_stage": 2, "ep_size": 2}, "accumulating", "engine.ep_size=1"),
        ("pcgrad", {"zero_stage": 2}, "weighted", "schedule.name=accumulating"),
    ],
)
def test_balancing_that_cannot_be_is_refused_with_the_remedy(balancing, engine, schedule, remedy):
    config = EngineConfig(**engine)
    with pytest.raises(BalancingError) as caught:
        check_balancing(balancing, engine=config, schedule=ScheduleConfig(name=schedule))
    assert remedy in str(caught.value)


def test_balancing_that_can_be_is_let_through():
    accumulating = ScheduleConfig(name="accumulating")
    check_balancing("pcgrad", engine=EngineConfig(zero_stage=2), schedule=accumulating)
    check_balancing("uncertainty", engine=EngineConfig(zero_stage=1), schedule=ScheduleConfig())
    check_balancing("none", engine=EngineConfig(zero_stage=3), schedule=ScheduleConfig())


def test_a_frozen_body_is_refused():
    model = toy_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("heads."))
    engine = build_engine(EngineConfig(name="torch"), model=model, optimizer=PLAIN)
    with pytest.raises(BalancingError, match="the body, which is frozen"):
        build_gradients("pcgrad", engine=engine, seed=0)
