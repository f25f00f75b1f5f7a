"""A recipe's model: built, its config with all that its tasks say, what it knows of each."""

from mmtrain.losses import load_loss
from mmtrain.models.config import ModelConfig, TaskSpec, net_of
from mmtrain.models.fitting import FittingError, check_fits, check_nets, filled
from mmtrain.models.model import MultiTaskModel, build_model
from mmtrain.recipe import Recipe
from pipelines import modalities
from pipelines.vocabulary import Vocabulary


def recipe_model(recipe: Recipe, vocabulary: Vocabulary | None) -> MultiTaskModel:
    """The model of a recipe with weights drawn from its seed; `vocabulary` is of its corpora.

    Raises:
        FittingError: the model does not fit the tasks; says what to change.
    """
    config, specs = fitted(recipe, vocabulary), task_specs(recipe, vocabulary)
    return build_model(config, specs, seed=recipe.seed)


def fitted(recipe: Recipe, vocabulary: Vocabulary | None = None) -> ModelConfig:
    """The config of a recipe's model with all that its tasks say.

    Args:
        recipe: the run.
        vocabulary: of its corpora; None: as large as they may be built.

    Raises:
        FittingError: names task, feature, net, both values and what to change.
    """
    check_nets(recipe.model, recipe.tasks)
    config = filled(recipe.model, recipe.tasks)
    check_fits(recipe.model, config, recipe.tasks)
    texts = [
        name
        for name, task in recipe.tasks.items()
        if any(modalities.is_text(feature.modality) for feature in (task.inputs, task.targets))
    ]
    if not texts:
        return config.model_copy(update={"vocab_size": None})
    if config.vocab_size is None:
        size = vocabulary.size if vocabulary else recipe.build.vocabulary_size
        return config.model_copy(update={"vocab_size": size})
    if vocabulary and config.vocab_size < vocabulary.size:
        raise FittingError(
            f"task {texts[0]}: the vocabulary of its text has {vocabulary.size} tokens, net 'text' "
            f"has {config.vocab_size} (model.vocab_size); leave that out: --set "
            f"model.vocab_size=null, or build with --set build.vocabulary_size={config.vocab_size}"
        )
    return config


def task_specs(recipe: Recipe, vocabulary: Vocabulary | None) -> list[TaskSpec]:
    """What the model must know of each task of a recipe."""
    family = recipe.model.family
    return [
        TaskSpec(
            name=task.name,
            input_net=net_of(family, task.inputs),
            output_net=net_of(family, task.targets),
            num_outputs=task.targets.num_outputs,
            output_groups=task.targets.output_groups,
            loss=(loss := task.loss or task.targets.loss),
            scores=load_loss(loss).scores,
            drop_layer=task.drop_layer,
            command_id=vocabulary.command_id(task.command) if vocabulary and task.command else None,
            head_init=task.head_init,
        )
        for task in recipe.tasks.values()
    ]
