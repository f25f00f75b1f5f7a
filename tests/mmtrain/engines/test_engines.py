import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from mmtrain.engines import (
    EngineConfig,
    EngineError,
    ParameterState,
    build_engine,
    check_combination,
)
from mmtrain.engines.pieces import writers
from mmtrain.engines.recompute import recompute_blocks
from tests.mmtrain.engines.toy import (
    ADAM,
    MOMENTA,
    SGD,
    STALE,
    global_batch,
    task_of,
    toy_model,
    train,
)


@pytest.mark.parametrize(
    ("config", "world_size", "experts", "remedy"),
    [
        ({"name": "torch"}, 2, (), "engine.name=deepspeed"),
        ({"name": "torch", "zero_stage": 1}, 1, (), "engine.zero_stage=0"),
        ({"name": "torch", "ep_size": 2}, 1, (4,), "engine.ep_size=1"),
        ({"name": "torch", "offload_optimizer": True}, 1, (), "engine.offload_optimizer=False"),
        ({"ep_size": 2}, 2, (4,), "engine.zero_stage=2 or engine.ep_size=1"),
        ({"ep_size": 2, "zero_stage": 3}, 2, (4,), "engine.zero_stage=2 or engine.ep_size=1"),
        ({"ep_size": 2, "zero_stage": 1}, 3, (4,), "[1, 3]"),
        ({"ep_size": 4, "zero_stage": 1}, 4, (8, 6), "[1, 2, 3, 6]"),
        ({"ep_size": 2, "zero_stage": 1}, 2, (), "use 1"),
        ({"precision": "bf16"}, 1, (), "engine.zero_stage=1"),
        ({"offload_optimizer": True}, 1, (), "engine.zero_stage=1, 2 or 3"),
    ],
)
def test_combinations_that_would_be_wrong_are_refused_with_the_remedy(
    config, world_size, experts, remedy
):
    with pytest.raises(EngineError) as caught:
        check_combination(EngineConfig(**config), world_size=world_size, num_experts=experts)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("config", "world_size", "experts"),
    [
        ({"name": "torch", "precision": "bf16"}, 1, (4,)),
        ({"zero_stage": 0}, 3, (4,)),
        ({"zero_stage": 3, "precision": "bf16"}, 3, (4,)),
        ({"zero_stage": 1, "ep_size": 2}, 4, (4, 8)),
        ({"zero_stage": 2, "ep_size": 4, "offload_optimizer": True}, 4, (8,)),
    ],
)
def test_combinations_that_work_are_let_through(config, world_size, experts):
    check_combination(EngineConfig(**config), world_size=world_size, num_experts=experts)


def test_engine_takes_the_same_steps_as_a_bare_loop():
    engine = build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=ADAM)
    train(engine, first=0, last=2)  # one task: every group but the other head steps

    model = toy_model()
    ours = [p for name, p in model.named_parameters() if "blue" not in name]
    groups = [
        {"params": [p for p in ours if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in ours if p.ndim == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1e-2, betas=ADAM.betas, eps=ADAM.eps)
    for step in range(2):
        inputs, labels = global_batch(step, 0)
        logits = model(task=task_of(step), inputs=inputs).logits
        functional.cross_entropy(logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), ADAM.clip_norm)
        adam.step()
        adam.zero_grad()
    for name, parameter in model.named_parameters():
        assert_close(engine.model_state()[name], parameter.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", [SGD, STALE])
def test_engine_takes_the_same_momentum_steps_as_torch_sgd(optimizer):
    engine = build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=optimizer)
    train(engine, first=0, last=5)  # red, red, blue, blue, red

    model = toy_model()
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in named.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(groups, lr=1e-2, momentum=0.9)
    for step in range(5):
        inputs, labels = global_batch(step, 0)
        logits = model(task=task_of(step), inputs=inputs).logits
        functional.cross_entropy(logits, labels).backward()
        if optimizer is STALE:
            for parameter in named.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        torch.nn.utils.clip_grad_norm_(model.parameters(), SGD.clip_norm)
        sgd.step()
        sgd.zero_grad()  # to None: torch leaves idle parameters and their momentum be
    for name, parameter in named.items():
        assert_close(engine.model_state()[name], parameter.detach(), rtol=0, atol=1e-6)


def test_momentum_of_a_step_is_that_of_its_task():
    engine = build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=SGD)
    train(engine, first=0, last=9, momenta=MOMENTA)  # 2 red, 2 blue, and so on; the last is red

    model = toy_model()
    named = dict(model.named_parameters())
    buffers = {name: torch.zeros_like(held) for name, held in named.items()}
    for step in range(9):
        inputs, labels = global_batch(step, 0)
        task = task_of(step)
        functional.cross_entropy(model(task=task, inputs=inputs).logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SGD.clip_norm)
        with torch.no_grad():
            for name, held in named.items():
                if held.grad is not None:
                    decay = 0.01 * held if held.ndim > 1 else 0.0
                    buffers[name] = MOMENTA[task] * buffers[name] + held.grad + decay
                    held -= 0.01 * buffers[name]
                    held.grad = None
    states = {state.name: state for state in engine.parameter_states()}
    for name, held in named.items():
        assert_close(engine.model_state()[name], held.detach(), rtol=0, atol=1e-6)
    bias = states["heads.red.bias"].tensors["momentum_buffer"]
    assert_close(bias, buffers["heads.red.bias"], rtol=0, atol=1e-6)


def test_without_a_tasks_own_the_momentum_is_the_configs():
    plain, given = (
        build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=SGD) for _ in range(2)
    )
    train(plain, first=0, last=5)
    train(given, first=0, last=5, momenta={"red": SGD.momentum})
    for name, held in plain.model_state().items():
        assert torch.equal(given.model_state()[name], held)


def test_betas_of_a_step_are_those_given_and_then_the_configs_again():
    engine = build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=ADAM)
    for betas, kept in (((0.5, 0.5), 0.5), (None, 0.9)):
        before = {state.name: state for state in engine.parameter_states()}["heads.red.bias"]
        logits = engine.forward(task="red", inputs=torch.ones(2, 3)).logits
        engine.backward(logits[:, 0].sum() / 10)  # below the clip; its bias' gradient is 0.2, 0 ..
        engine.step({"task/red"}, learning_rates={"task/red": 1e-3}, betas=betas)
        after = {state.name: state for state in engine.parameter_states()}["heads.red.bias"]
        expected = before.tensors["exp_avg"] * kept
        expected[0] += 0.2 * (1 - kept)
        norm = float(after.tensors["exp_avg"][0] / expected[0])
        assert_close(after.tensors["exp_avg"], expected * norm)


def test_micro_batches_add_up_to_the_same_step():
    engines = [
        build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=ADAM)
        for _ in range(2)
    ]
    inputs, labels = global_batch(0, 0)
    for engine, parts in zip(engines, (1, 3), strict=True):
        for x, y in zip(inputs.chunk(parts), labels.chunk(parts), strict=True):
            logits = engine.forward(task="red", inputs=x).logits
            engine.backward(functional.cross_entropy(logits, y, reduction="sum") / 12)
    norms = [
        engine.step({"task/red"}, learning_rates={"task/red": 1e-2}).gradient_norm
        for engine in engines
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    states = [engine.model_state() for engine in engines]
    assert_close(states[0], states[1], rtol=0, atol=1e-6)


def test_stats_name_the_owners_that_took_part():
    engine = build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=ADAM)
    engine.backward(engine.forward(task="red", inputs=torch.ones(2, 3)).logits.sum())
    stats = engine.step(
        {"task/red", "task/unknown"}, learning_rates={"task/red": 1e-3, "task/unknown": 1.0}
    )
    assert stats.learning_rates == {"task/red": 1e-3}
    assert stats.gradient_norm > 0


def test_an_owner_not_named_keeps_still_although_it_had_a_gradient():
    engine = build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=ADAM)
    before = engine.model_state()
    engine.backward(engine.forward(task="red", inputs=torch.ones(2, 3)).logits.square().sum())
    engine.step({"task/red"}, learning_rates={"task/red": 1e-3})
    moved = {name for name, value in engine.model_state().items() if not value.equal(before[name])}
    assert moved == {"heads.red.weight", "heads.red.bias"}


def test_infinite_gradient_changes_no_weight_and_no_moment():
    engine = build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=ADAM)
    train(engine, first=0, last=2)
    before = list(engine.parameter_states())
    engine.backward(engine.forward(task="red", inputs=torch.ones(2, 3)).logits.sum() * torch.inf)
    stats = engine.step(
        engine.model.owners("red"), learning_rates=dict.fromkeys(engine.model.owners("red"), 1.0)
    )
    assert not torch.isfinite(torch.tensor(stats.gradient_norm))
    for old, new in zip(before, engine.parameter_states(), strict=True):
        assert old.step == new.step
        assert all(old.tensors[key].equal(new.tensors[key]) for key in old.tensors)


def test_bf16_computes_in_bf16_and_steps_in_fp32():
    config = EngineConfig(name="torch", precision="bf16")
    engine = build_engine(config, model=toy_model(), optimizer=ADAM)
    start = engine.model_state()["stem.weight"]
    train(engine, first=0, last=4)
    assert engine.model.stem.weight.dtype == torch.bfloat16
    master = engine.model_state()["stem.weight"]
    assert not master.equal(master.bfloat16().float())
    assert not master.equal(start)
    assert engine.model.stem.weight.equal(master.bfloat16())


def test_frozen_parameters_stay_and_travel_with_the_checkpoint():
    models = [toy_model(0), toy_model(1)]
    for model in models:
        model.stem.requires_grad_(False)
    source, target = (
        build_engine(EngineConfig(name="torch"), model=model, optimizer=ADAM) for model in models
    )
    train(source, first=0, last=2)
    states = {state.name: state for state in source.parameter_states()}
    assert list(states["stem.weight"].tensors) == ["weight"]
    target.load_parameter_states(iter(states.values()))
    assert target.model_state()["stem.weight"].equal(toy_model(0).stem.weight)


def test_experts_are_states_of_their_own_by_global_id():
    engine = build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=ADAM)
    states = {state.name: state for state in engine.parameter_states()}
    assert [name for name in states if "w_in" in name] == [f"moe.w_in[{i}]" for i in range(4)]
    assert states["moe.w_in[2]"].tensors["weight"].equal(engine.model.moe.w_in[2])


def test_a_missing_state_and_an_unknown_one_are_named():
    engine = build_engine(EngineConfig(name="torch"), model=toy_model(), optimizer=ADAM)
    states = list(engine.parameter_states())
    with pytest.raises(EngineError, match=r"lacks 1 of the model's parameters, 'stem.weight'"):
        engine.load_parameter_states(s for s in states if s.name != "stem.weight")
    odd = ParameterState("odd", {"weight": torch.zeros(1)}, 0)
    with pytest.raises(EngineError, match="'odd', which the model has not"):
        engine.load_parameter_states(iter([odd, *states]))


def test_each_entry_is_written_by_the_rank_with_the_least_so_far():
    assert writers([10, 4, 4, 4, 1], world_size=2) == [0, 1, 1, 1, 0]
    assert writers([5, 5, 5], world_size=3) == [0, 1, 2]


def test_blocks_computed_again_keep_less_and_give_the_same_gradients():
    kept, gradients = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh()) for _ in range(3)]
        model = nn.Module()
        model.layers = nn.ModuleList(layers)
        if recompute:
            recompute_blocks(model)
        sizes: list[int] = []

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        x = torch.ones(8, 4)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            for layer in layers:
                x = layer(x)
        x.sum().backward()
        kept.append(sum(sizes))
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert kept[1] < kept[0] / 2
    assert_close(gradients[0], gradients[1], rtol=0, atol=0)
