import pytest
import torch

from mmtrain.engines import EngineConfig, build_engine
from mmtrain.step.gradient_monitor import SAMPLE, GradientMonitor, cosines, sampled_places
from tests.mmtrain.engines.toy import ADAM, TASKS, global_batch, toy_model


def watched(monitor: GradientMonitor, engine, task: str, *, ordinal: int, scale: float = 1.0):
    inputs, _ = global_batch(TASKS.index(task), 0)
    with monitor.watching(task, ordinal=ordinal):
        logits = engine.forward(task=task, inputs=inputs).logits
        engine.backward(scale * logits.square().sum())
    monitor.end_step()
    engine.step((), learning_rates={})


def made(every: int):
    model = toy_model()
    monitor = GradientMonitor(model, tasks=TASKS, every=every, seed=0)
    return monitor, build_engine(EngineConfig(name="torch"), model=model, optimizer=ADAM)


def test_cosines_are_those_of_whole_gradients_at_the_places_sampled():
    monitor, engine = made(every=1)
    flat = []
    for task in TASKS:
        watched(monitor, engine, task, ordinal=0)
        inputs, _ = global_batch(TASKS.index(task), 0)
        engine.model(task=task, inputs=inputs).logits.square().sum().backward()
        parts = [p.grad.flatten()[at] for p, at, _ in sampled_places(engine.model, seed=0)]
        flat.append(torch.cat(parts))
        engine.model.zero_grad()
    expected = float(torch.cosine_similarity(flat[0], flat[1], dim=0))
    point = monitor.point()
    assert point is not None
    assert point[0][1] == point[1][0] == pytest.approx(expected, abs=1e-5)
    assert point[0][0] == pytest.approx(1.0)
    assert monitor.point() is None  # nothing new since


def test_only_due_steps_are_sampled_and_leave_no_hooks():
    monitor, engine = made(every=3)
    for ordinal in range(7):
        watched(monitor, engine, "red", ordinal=ordinal)
        point = monitor.point()
        assert (point is not None) == (ordinal % 3 == 0)
        assert not any(p._backward_hooks for p in engine.model.parameters())
    assert point == [[pytest.approx(1.0), None], [None, None]]


def test_sampling_changes_no_gradient():
    seen = []
    for every in (0, 1):
        monitor, engine = made(every=every)
        inputs, _ = global_batch(0, 0)
        with monitor.watching("red", ordinal=0):
            engine.backward(engine.forward(task="red", inputs=inputs).logits.square().sum())
        seen.append([p.grad for p in engine.model.parameters() if p.grad is not None])
    assert all(left.equal(right) for left, right in zip(*seen, strict=True))


def test_places_lie_in_the_body_alone_and_follow_the_seed():
    model = toy_model()
    places = sampled_places(model, seed=0)
    assert sum(len(at) for _, at, _ in places) == SAMPLE
    body = {id(p) for n, p in model.named_parameters() if n.startswith(("moe", "norm"))}
    assert {id(parameter) for parameter, _, _ in places} <= body
    again, other = sampled_places(model, seed=0), sampled_places(model, seed=1)
    assert all(a[1].equal(b[1]) for a, b in zip(places, again, strict=True))
    assert not torch.cat([at for _, at, _ in places]).equal(torch.cat([at for _, at, _ in other]))


def test_a_frozen_body_has_nothing_to_sample():
    model = toy_model().requires_grad_(False)
    monitor = GradientMonitor(model, tasks=TASKS, every=1, seed=0)
    with monitor.watching("red", ordinal=0):
        pass
    monitor.end_step()
    assert monitor.point() is None


def test_opposite_gradients_have_cosine_minus_one_and_none_has_none():
    left, zero = torch.tensor([1.0, 2.0]), torch.zeros(2)
    assert cosines([left, -2 * left, None, zero]) == [
        [pytest.approx(1.0), pytest.approx(-1.0), None, None],
        [pytest.approx(-1.0), pytest.approx(1.0), None, None],
        [None] * 4,
        [None] * 4,
    ]
