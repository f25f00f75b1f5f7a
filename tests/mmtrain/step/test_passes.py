"""Micro-batches through masks: which unions, what they add to the loss, what they move."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmtrain.layers.units import UnitGate, gated
from mmtrain.losses import cross_entropy, weight_decay_loss
from mmtrain.masks.banks import MaskError
from mmtrain.masks.config import PruningConfig
from mmtrain.masks.objective import subtask_loss
from mmtrain.models import resnet
from mmtrain.models.model import MultiTaskModel, Outputs
from mmtrain.recipe import Recipe, load_recipe
from mmtrain.step.passes import check_pruning
from mmtrain.step.rates import step_rates
from pipelines.batch import Batch
from pipelines.errors import UnknownNameError
from tests.mmtrain.step.masked_run import (
    BODIES,
    ENGINES,
    PRUNING,
    TASKS,
    MaskedRun,
    micro_of,
    model_of,
    passes_of,
    recipe_of,
)

SHAPE_STEP, SHADE_STEP = 0, 1  # tasks take turns
ALL = ("ab", "c", "d", "shade")


def pruning(**fields: object) -> PruningConfig:
    return PruningConfig.model_validate({**PRUNING.model_dump(), **fields})


def shares_of(run: MaskedRun, *, step: int) -> list[Tensor]:
    """Each pass's share of the loss of a step, with its graph."""
    micros = [micro_of(run.recipe, step=step)]
    num_targets = run.objective.count_targets(micros)
    shares = []
    for micro, drawn in run.passes.each(micros):
        with run.passes.masked(drawn):
            share = run.objective.micro_loss(
                run.engine, micro, num_targets=num_targets, rates=run.rates(step), masked=drawn
            ).share
        shares.append(share)
    return shares


def forward(model: MultiTaskModel, micro: Batch) -> Outputs:
    return model(
        task=micro.task, inputs=torch.from_numpy(micro.inputs),
        input_lengths=torch.from_numpy(micro.input_lengths), targets=None,
    )  # fmt: skip


def gates_of(run: MaskedRun) -> list[UnitGate]:
    return [module for module in run.model.modules() if isinstance(module, UnitGate)]


def test_without_masks_a_micro_batch_passes_once_and_its_loss_is_the_task_s():
    run = MaskedRun.build(recipe_of(pruning=None))
    assert run.passes.kept() is None
    (share,) = shares_of(run, step=SHADE_STEP)
    micro = micro_of(run.recipe, step=SHADE_STEP)
    outputs = forward(run.model, micro)
    loss = cross_entropy(outputs.logits, torch.from_numpy(micro.targets))
    assert share.item() == (loss.total / 12).item()


def test_all_subtasks_and_a_drawn_union_with_the_task_pass():
    run = MaskedRun.build(recipe_of())
    for step in range(40):
        task = micro_of(run.recipe, step=step).task
        unions = [drawn.subtasks for drawn in run.passes.of_task(task, step=step)]
        assert unions[0] == ALL
        assert set(unions[1]) & ({"shade"} if task == "shade" else {"ab", "c", "d"})


def test_gates_have_masks_while_a_pass_is_open_and_none_afterwards():
    run = MaskedRun.build(recipe_of())
    for drawn in run.passes.of_task("shape", step=SHAPE_STEP):
        assert drawn.subtasks
        assert all(gate.mask is None for gate in gates_of(run))
        with run.passes.masked(drawn):
            assert all(gate.mask is not None for gate in gates_of(run))
        assert all(gate.mask is None for gate in gates_of(run))
    with run.passes.whole():
        assert all(gate.mask is not None for gate in gates_of(run))
    assert all(gate.mask is None for gate in gates_of(run))


def test_loss_of_a_class_group_weighs_its_classes_and_a_whole_task_keeps_its_own():
    run = MaskedRun.build(recipe_of())
    classes = {
        drawn.subtasks: drawn.classes for drawn in run.passes.of_task("shape", step=SHAPE_STEP)
    }
    assert classes.pop(ALL) == (0, 1, 2, 3)
    assert list(classes) == [("c",)]
    assert classes["c",] == (2,)
    assert {m.classes for m in run.passes.of_task("shade", step=SHADE_STEP)} == {None}


def test_step_s_loss_is_the_mean_over_unions_of_loss_and_price():
    run = MaskedRun.build(recipe_of())
    shares = shares_of(run, step=SHAPE_STEP)
    micro = micro_of(run.recipe, step=SHAPE_STEP)
    targets = torch.from_numpy(micro.targets)
    bank = run.passes.masks
    assert bank is not None
    expected = []
    for drawn in run.passes.of_task("shape", step=SHAPE_STEP):
        with run.passes.masked(drawn):
            outputs = forward(run.model, micro)
        loss = subtask_loss(outputs.logits, targets, classes=drawn.classes or (), beta=10.0)
        rows = bank.utility[[ALL.index(name) for name in drawn.subtasks]]
        price = 0.1 * rows.abs().max(dim=0).values.mean()
        expected.append((loss.total / 12 + price) / 2)
    assert_close(torch.stack(shares), torch.stack(expected))


@pytest.mark.parametrize("body", BODIES)
def test_gradients_of_a_step_are_those_of_its_unions_by_hand_to_the_last_bit(body):
    run, twin = (MaskedRun.build(recipe_of(body=BODIES[body])) for _ in range(2))
    for share in shares_of(run, step=SHAPE_STEP):
        share.backward()
    micro, bank = micro_of(twin.recipe, step=SHAPE_STEP), twin.passes.masks
    assert bank is not None
    for draw in twin.passes.draws("shape", step=SHAPE_STEP):
        masks = bank.masks(draw.subtasks)
        classes = twin.passes.subtasks.classes(draw.subtasks, task="shape") or ()
        with gated(twin.model, masks.gates):
            outputs = forward(twin.model, micro)
        targets = torch.from_numpy(micro.targets)
        loss = subtask_loss(outputs.logits, targets, classes=classes, beta=10.0).total / 12
        beside = outputs.auxiliary_loss + 0.1 * masks.utility.mean()
        (draw.share * (loss + beside)).backward()
    pairs = zip(run.model.named_parameters(), twin.model.parameters(), strict=True)
    for (name, parameter), other in pairs:
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad), name


def test_price_is_nothing_while_it_warms_up():
    free = MaskedRun.build(recipe_of(pruning=pruning(gamma=0.0)))
    warm = MaskedRun.build(recipe_of(pruning=pruning(gamma=9.0, warmup_steps=1)))
    assert_close(shares_of(warm, step=0), shares_of(free, step=0))
    assert shares_of(warm, step=1)[0] > shares_of(free, step=1)[0] + 1


def test_units_that_are_off_get_a_gradient_and_can_come_back():
    run = MaskedRun.build(recipe_of(pruning=pruning(gamma=0.0)))
    _, alone = shares_of(run, step=SHAPE_STEP)
    alone.backward()
    utility = run.model.get_parameter("masks.utility")
    row = ALL.index("c")  # the second union
    off = utility[row].abs() < 0.5
    assert off.sum() > 20
    assert utility.grad is not None
    assert (utility.grad[row][off] != 0).float().mean() > 0.9
    assert (utility.grad[[0, 2, 3]] == 0).all()  # no subtask of theirs


def test_blocks_computed_again_in_backward_are_masked_too():
    kept, again = (
        MaskedRun.build(recipe_of(engine=engine)).train(first=0, last=4)
        for engine in ("torch", "recomputed")
    )
    assert [step["norm"] for step in again] == [step["norm"] for step in kept]
    assert [step["loss"] for step in again] == [step["loss"] for step in kept]


def test_gradients_without_conflicts_are_taken_of_masks_too():
    run = MaskedRun.build(recipe_of(balancing="pcgrad"))
    before = run.passes.masks.utility.clone()  # type: ignore[union-attr]  # it has masks
    run.train(first=0, last=1)
    moved = run.passes.masks.utility != before  # type: ignore[union-attr]
    assert moved.any(dim=0).all()  # of each unit, the subtask that needs it most


def test_masks_learn_at_their_own_rate_and_do_not_decay():
    run = MaskedRun.build(recipe_of(pruning=pruning(learning_rate_scale=3.0)))
    rates = run.rates(SHAPE_STEP).learning_rates
    assert rates["masks"] == pytest.approx(0.03)
    assert rates["body/blocks"] == pytest.approx(0.01)
    decays = {group["owner"]: group["weight_decay"] for group in run.engine._optimizer.param_groups}
    assert decays["masks"] == 0.0
    assert decays["body/blocks"] == 0.01


def test_masks_do_not_decay_in_the_loss_either():
    model = model_of(recipe_of())
    plain = weight_decay_loss(model.trained_by("shape"), weight=3.0)
    passes_of(recipe_of(), model)
    masked = weight_decay_loss(model.trained_by("shape"), weight=3.0)
    assert "masks" in model.owners("shape")
    assert torch.equal(plain, masked)


def test_a_task_in_no_subtask_trains_whole_and_leaves_masks_alone():
    tasks = {task.name: task for task in TASKS}
    run = MaskedRun.build(recipe_of(tasks=tasks, pruning=pruning(uncovered="allow")))
    assert run.model.owners("shape") >= {"masks"}
    assert "masks" not in run.model.owners("spare")
    before = run.passes.masks.utility.clone()  # type: ignore[union-attr]  # it has masks
    trace = run.train(first=2, last=3)
    assert trace[0]["unions"] == [()]
    assert torch.equal(run.passes.masks.utility, before)  # type: ignore[union-attr]


def statistics(run: MaskedRun) -> Tensor:
    return run.model.get_buffer("body.blocks.1.conv1.norm.running_mean").clone()


def test_running_statistics_are_those_of_all_subtasks_together():
    body = BODIES["norms"]
    both = MaskedRun.build(recipe_of(body=body))
    alone = MaskedRun.build(recipe_of(body=body))
    shares_of(both, step=SHAPE_STEP)
    first = next(alone.passes.of_task("shape", step=SHAPE_STEP))
    with alone.passes.masked(first):
        forward(alone.model, micro_of(both.recipe, step=SHAPE_STEP))
    assert statistics(both).abs().sum() > 0
    assert torch.equal(statistics(both), statistics(alone))


def test_where_all_subtasks_do_not_pass_statistics_are_a_mixture():
    assert isinstance(BODIES["norms"], resnet.Config)
    run = MaskedRun.build(recipe_of(body=BODIES["norms"], pruning=pruning(num_samples=1)))
    before = statistics(run)
    shares_of(run, step=SHAPE_STEP)
    assert not torch.equal(statistics(run), before)


REFUSED = {
    "masks are read whole before a pass, engine.zero_stage=3": {
        "engine": ENGINES["zero1"].model_copy(update={"zero_stage": 3})
    },
    "no subtask has task spare": {"tasks": {task.name: task for task in TASKS}},
    "pruning.train=masks leaves spare nothing to train": {
        "tasks": {task.name: task for task in TASKS},
        "pruning": pruning(uncovered="allow", train="masks"),
    },
    "set tasks.shade.loss to 'sigmoid_cross_entropy'": {
        "pruning": pruning(subtasks={"dark": ("shade:dark",)}, uncovered="allow")
    },
    "subtasks ab and again both have class shape:a": {
        "pruning": pruning(subtasks={**PRUNING.subtasks, "again": ("shape:a",)}, overlap="refuse")
    },
}


def check(recipe: Recipe) -> None:
    check_pruning(recipe.pruning, tasks=recipe.tasks, engine=recipe.engine)


@pytest.mark.parametrize(("reason", "fields"), REFUSED.items())
def test_what_cannot_be_learned_is_refused_before_a_run(reason, fields):
    recipe = recipe_of().model_copy(update=fields)
    with pytest.raises(MaskError, match=reason):
        check(recipe)


def test_unknown_tasks_and_classes_are_refused_by_name():
    for entry, message in (("shap", "nearest: shape, shade"), ("shape:e", "class of task shape")):
        config = pruning(subtasks={"x": (entry,)}, uncovered="allow")
        with pytest.raises(UnknownNameError, match=message):
            check(recipe_of().model_copy(update={"pruning": config}))


@pytest.mark.parametrize("name", ["san_resnet", "san_polyvit", "san_multimodel"])
def test_subtasks_of_shipped_runs_have_all_of_their_tasks_and_classes(name):
    check(load_recipe(name))


def test_a_recipe_without_masks_is_not_looked_at():
    check(recipe_of(pruning=None))
    model = model_of(recipe_of(pruning=None))
    names = set(model.state_dict())
    passes_of(recipe_of(pruning=None), model)
    assert set(model.state_dict()) == names


def test_rates_are_scaled_for_the_owners_named_alone():
    recipe = recipe_of()
    rates = step_rates(
        recipe.optimizer, step=0, num_steps=10, tasks={"shade": recipe.tasks["shade"]},
        owners={"shade": ["masks", "body/x"]}, scales={"masks": 0.5, "other": 7.0},
    )  # fmt: skip
    assert rates.learning_rates == {"body/x": 0.01, "masks": 0.005}
