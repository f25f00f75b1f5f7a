"""What may change when a run goes on, and what may not: every field of a recipe is in one table.

A checkpoint's cursors count batches of a schedule over corpora, and its moments are sums over
gradients of one objective. A field that would give them another meaning is refused; what is left
of the run's own choice (rates, length, machines, what is logged) may change, and that is told.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from mmtrain.checkpoint import Progress
from mmtrain.recipe import Recipe, RecipeError
from mmtrain.run.corpora import check_corpora
from mmtrain.run.model import fitted
from pipelines.errors import first_problem
from pipelines.shards import Manifest
from pipelines.vocabulary import Vocabulary

Change = Literal["refused", "told"]

# A name stands for its field and all below it; "*" is any task. What is in no row is refused, and
# a test wants a row for every field.
FIELDS: Mapping[Change, str] = {
    "refused": """
        model seed frozen balancing schedule stream.shuffle_window init_from inflation init_heads
        tasks.*.name tasks.*.source tasks.*.inputs tasks.*.targets tasks.*.command tasks.*.loss
        tasks.*.batch_size tasks.*.batch_tokens tasks.*.batch_multiple tasks.*.bucket_bounds
        tasks.*.num_steps tasks.*.betas tasks.*.momentum tasks.*.head_init
        optimizer.name optimizer.betas optimizer.momentum optimizer.apply_stale_momentum
        pruning
    """,
    "told": """
        name build
        tasks.*.metrics tasks.*.baseline tasks.*.loss_weight tasks.*.label_smoothing
        tasks.*.augment tasks.*.mixup tasks.*.drop_layer
        tasks.*.learning_rate tasks.*.warmup_steps
        stream.steps_per_read stream.block_bytes stream.prefetch stream.cache_bytes
        stream.buffer_bytes stream.num_readers stream.num_cpus stream.timeout_s
        optimizer.learning_rate optimizer.schedule optimizer.warmup_steps optimizer.decay_start
        optimizer.decay_factor optimizer.accumulated_rate optimizer.eps optimizer.weight_decay
        optimizer.weight_decay_loss optimizer.clip_norm
        engine.name engine.zero_stage engine.precision engine.ep_size engine.accumulation
        engine.activation_checkpointing engine.offload_optimizer
        num_steps num_workers use_gpu log_every validate_every validation_batches monitor_every
        save_every keep_checkpoints max_failures check_ranks
    """,
}
_CHANGES: dict[str, Change] = {
    field: change for change, fields in FIELDS.items() for field in fields.split()
}
_ABSENT = object()


def check_resume(
    recipe: Recipe,
    progress: Progress,
    *,
    uri: str,
    corpora: Mapping[str, Manifest],
    vocabulary: Vocabulary | None = None,
) -> str | None:
    """Refuses to go on from a checkpoint with what gives its state another meaning.

    Args:
        recipe: to go on with.
        progress: of the checkpoint.
        uri: of the checkpoint, for the messages.
        corpora: the opened training splits, by task.
        vocabulary: the run's; models are compared as fitted to it and to their tasks.

    Returns:
        What changed since and may, in a line; None: nothing.

    Raises:
        RecipeError: a field must not change, or the run would end before the checkpoint.
        CorpusError: a training split is another one.
    """
    saved = _saved_recipe(progress, uri=uri)
    if list(recipe.tasks) != list(saved.tasks):
        raise _refusal({"tasks": (list(saved.tasks), list(recipe.tasks))}, uri=uri)
    both = (one.with_(model=fitted(one, vocabulary)) for one in (saved, recipe))
    changes = changed_fields(*(one.model_dump(mode="json") for one in both))
    refused = {name: pair for name, pair in changes.items() if change_of(name) == "refused"}
    if refused:
        raise _refusal(refused, uri=uri)
    if recipe.num_steps < progress.step:
        raise RecipeError(
            f"{uri} is of step {progress.step}, the recipe ends at num_steps={recipe.num_steps}; "
            f"use num_steps={progress.step} or more, or give another --out"
        )
    check_corpora(progress, corpora)
    told = ", ".join(
        f"{name} {_shown(old)} -> {_shown(new)}" for name, (old, new) in changes.items()
    )
    return f"changed since step {progress.step}: {told}" if told else None


def changed_fields(old: Any, new: Any, *, name: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields of two JSON values that differ, by dotted name, each with both values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {name: (old, new)}
    return {
        inner: pair
        for key in old | new
        for inner, pair in changed_fields(
            old.get(key, _ABSENT), new.get(key, _ABSENT), name=f"{name}.{key}" if name else key
        ).items()
    }


def change_of(name: str) -> Change:
    """Whether a field, by its dotted name, may change."""
    parts = name.split(".")
    if parts[0] == "tasks" and len(parts) > 1:
        parts[1] = "*"
    for length in range(len(parts), 0, -1):
        above = ".".join(parts[:length])
        if above in _CHANGES:
            return _CHANGES[above]
    return "refused"


def _saved_recipe(progress: Progress, *, uri: str) -> Recipe:
    try:
        return Recipe.model_validate_json(progress.recipe_json)
    except ValidationError as error:
        raise RecipeError(
            f"{uri} was saved with a recipe that this version does not read: "
            f"{first_problem(error)}; go on with the version that saved it, or give another --out"
        ) from None


def _refusal(changes: Mapping[str, tuple[Any, Any]], *, uri: str) -> RecipeError:
    shown = "; ".join(
        f"{name}: {_shown(old)}, the recipe says {_shown(new)}"
        for name, (old, new) in changes.items()
    )
    return RecipeError(
        f"{uri} is of another {shown}. Resume with the run's own recipe.json, or give another --out"
    )


def _shown(value: Any) -> str:
    return "none" if value is _ABSENT else f"{json.dumps(value):.120}"
