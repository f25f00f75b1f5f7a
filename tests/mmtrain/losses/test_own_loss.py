"""A loss of a user's own file trains a task, its hits counted in validation."""

import pytest
import torch

from mmtrain.engines import EngineConfig, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.engines.ranks import Ranks
from mmtrain.losses import LossError, check_loss, cross_entropy, load_loss
from mmtrain.masks.objective import subtask_loss
from mmtrain.models.model import ModelConfig, build_model
from mmtrain.recipe import Recipe
from mmtrain.run.components import build_objective
from mmtrain.run.model import task_specs
from mmtrain.step.passes import Passes
from mmtrain.step.rates import step_rates
from mmtrain.step.validation import validate
from tests.mmtrain.step.masked_run import NETS, micro_of, polyvit_body, task

OWN = '''
"""The focal loss, Lin et al., arXiv:1708.02002, Eq. 4, and a loss of classes each by itself."""
from functools import partial
from mmtrain.losses import Loss, cross_entropy

@cross_entropy.variant(of=("label",))
def focal(logits, targets):
    p = logits.softmax(-1).gather(1, targets.reshape(-1, 1).long())
    return -((1 - p) ** 2 * p.log()).sum()

def distances(logits, targets):
    wanted = 2.0 * (targets.reshape(-1, 1) == range_like(logits)) - 1
    return (1 - wanted * logits).clamp(min=0)

def range_like(logits):
    return logits.new_ones(logits.shape[-1]).cumsum(0) - 1

@partial(Loss, of=("label",), by_class=distances)
def hinge(logits, targets):
    return distances(logits, targets).sum()
'''


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "my_losses.py"
    file.write_text(OWN)
    return file


def recipe_of(loss: str) -> Recipe:
    own_task = task("shape", loss=loss, classes=tuple("abcd"))
    return Recipe(
        name="own",
        tasks={"shape": own_task},
        model=ModelConfig(family="polyvit", body=polyvit_body(), nets=NETS),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=0),
        engine=EngineConfig(name="torch"),
        num_steps=8,
    )


def test_a_loss_of_a_users_own_file_trains_and_is_validated(own):
    recipe = Recipe.model_validate_json(recipe_of(f"{own}:focal").model_dump_json())
    check_loss(recipe.tasks["shape"])
    ranks = Ranks.current(use_gpu=False)
    model = build_model(recipe.model, task_specs(recipe, None), seed=0)
    assert model.task("shape").scores == "softmax"  # all that a predictor must know of the loss
    engine = build_engine(recipe.engine, model=model, optimizer=recipe.optimizer)
    owners, objective = {"shape": model.owners("shape")}, build_objective(recipe, ranks)
    passes = Passes.build(recipe.pruning, model, tasks=recipe.tasks, seed=recipe.seed)
    micro = micro_of(recipe, step=0)
    before = validate(engine, [micro], device=ranks.device)["shape"]
    for step in range(recipe.num_steps):
        rates = step_rates(
            recipe.optimizer, step=step, num_steps=8, tasks=recipe.tasks, owners=owners
        )
        targets = objective.count_targets([micro])
        for part, drawn in passes.each([micro]):
            with passes.masked(drawn):
                loss = objective.micro_loss(
                    engine, part, num_targets=targets, rates=rates, masked=drawn
                )
                engine.backward(loss.share)
        engine.step(
            active_owners=owners["shape"], learning_rates=rates.learning_rates, **rates.decays
        )
    after = validate(engine, [micro], device=ranks.device)["shape"]
    assert before.loss == pytest.approx(0.75**2 * 1.386294, rel=1e-4)  # fresh heads: p = 1/4
    assert after.loss < 0.5 * before.loss
    assert before.accuracy is not None
    assert after.accuracy is not None
    assert after.accuracy > before.accuracy


def test_its_perplexity_is_that_of_the_loss_whose_scores_it_shares(own):
    assert load_loss(f"{own}:focal").likelihood is cross_entropy
    assert load_loss(f"{own}:hinge").likelihood is None


def test_a_loss_made_of_classes_is_weighed_by_a_subtasks_classes(own):
    logits, targets = torch.tensor([[0.5, -2.0, 3.0]]), torch.tensor([[0]])
    hinge = load_loss(f"{own}:hinge")
    assert float(hinge(logits, targets).total) == 0.5 + 0.0 + 4.0
    total = subtask_loss(logits, targets, classes=(0,), beta=2.0, loss=hinge).total
    assert float(total) == pytest.approx((2 * 0.5 + 0.0 + 4.0) / 4)


def test_it_is_refused_where_it_does_not_fit(own):
    fields = recipe_of(f"{own}:focal").tasks["shape"]
    with pytest.raises(LossError, match="has no label_smoothing"):
        check_loss(fields.model_copy(update={"label_smoothing": 0.1}))
