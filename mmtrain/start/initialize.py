"""What a run starts from: `--init-from` weights, and which of them stay frozen.

A source is a trained vision transformer on disk, or a model of ours: a run, a bundle or a
registered version. What fits is loaded, what is new is left as drawn, and a shape that is at odds
with the recipe's ends the run before it starts, both sides named.

A model of ours gives all parameters of the same names; stems, blocks and positions of a family of
transformer blocks are fitted to other modalities and sizes (`vit_weights.py`). A task's head is
taken over only if the source has the task, with the same targets.
"""

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from mmtrain.layers.inflation import Inflation
from mmtrain.masks.attach import masks_of
from mmtrain.models.model import MultiTaskModel
from mmtrain.start.trained import Trained, check_shapes, same_names
from mmtrain.start.vit import InitError, Vit
from mmtrain.start.vit_weights import differences, from_vits, to_vits, vit_blocks_of
from pipelines.errors import UnknownNameError
from pipelines.modalities import Feature
from pipelines.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Start:
    """What a model starts from. `str` says it in a line.

    Args:
        state: weights to load, by parameter name.
        fresh: owners of parameters that are left as drawn, with how many tensors.
        loaded: owners of those that are loaded, likewise.
        warnings: settings in which the model computes otherwise than the source did.
    """

    state: Mapping[str, Tensor]
    loaded: Mapping[str, int]
    fresh: Mapping[str, int]
    warnings: Sequence[str] = field(default=())

    def __str__(self) -> str:
        return f"loaded {_counts(self.loaded)}; fresh: {_counts(self.fresh) or 'nothing'}"


def plan_start(
    model: MultiTaskModel,
    source: Vit | Trained,
    *,
    targets: Mapping[str, Feature],
    vocabulary: Vocabulary | None,
    inflation: Inflation,
    heads: Literal["same_tasks", "fresh"] = "same_tasks",
) -> Start:
    """What of a source goes where in a model; nothing is changed.

    Args:
        model: the recipe's model, whose weights are not read; may be on the meta device.
        source: the weights.
        targets: feature of each task's targets.
        vocabulary: the run's; tables of tokens are taken over only between equal ones.
        inflation: how a picture's kernel becomes a video's.
        heads: whether a task's head is taken over from a source that has the task.

    Raises:
        InitError: the source is of another family or of other sizes; both sides are named.
    """
    if isinstance(source, Vit):
        if vit_blocks_of(model.config.family) is None:
            raise InitError(
                f"the weights are a vision transformer's, the recipe's model is of family "
                f"{model.config.family!r}; use a recipe of family 'polyvit'"
            )
        vits = {"image": source}
        return _start(model, from_vits(model, vits, inflation=inflation), differences(model, vits))
    if model.config.family != source.card.model.family:
        raise InitError(
            f"the weights are of family {source.card.model.family!r}, the recipe's model is of "
            f"family {model.config.family!r}; start from a model of the same family"
        )
    state = same_names(model, source, targets=targets, vocabulary=vocabulary)
    if heads == "fresh":
        state = {
            name: value
            for name, value in state.items()
            if not (name.startswith("heads.") and name.split(".")[1] in model.tasks)
        }
    notes: list[str] = []
    if source.card.pruning and not masks_of(model):
        notes.append(
            "the source's masks are left out, with which it was trained; go on from a cut model "
            "(mmtrain prune), or keep pruning in the recipe"
        )
    if vit_blocks_of(model.config.family) is not None:
        vits = to_vits(source.meta_model(), source.state)
        state |= from_vits(model, vits, inflation=inflation)
        notes += differences(model, vits)
    else:
        check_shapes(model, source, state, vocabulary=vocabulary)
    return _start(model, state, notes)


def load_start(model: MultiTaskModel, start: Start) -> None:
    """Copies the weights into the model."""
    model.load_state_dict(dict(start.state), strict=False)


def frozen_owners(model: MultiTaskModel, patterns: Sequence[str]) -> frozenset[str]:
    """Owners of parameters that the patterns name, as `fnmatch` reads them.

    Raises:
        UnknownNameError: a pattern names no owner; lists the owners.
        InitError: a task would train nothing.
    """
    owners = tuple(
        dict.fromkeys(model.parameter_owner(name) for name, _ in model.named_parameters())
    )
    frozen: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(owners, pattern)
        if not matching:
            raise UnknownNameError("owner of parameters", pattern, owners)
        frozen |= set(matching)
    for task in model.tasks:
        if model.owners(task) <= frozen:
            raise InitError(
                f"frozen={list(patterns)} leaves task {task} nothing to train; leave its head "
                f"out: {', '.join(sorted(model.owners(task)))}"
            )
    return frozenset(frozen)


def freeze(model: MultiTaskModel, patterns: Sequence[str]) -> None:
    """Parameters of the owners that the patterns name stay as they are; dropout stays on."""
    owners = frozen_owners(model, patterns)
    for name, parameter in model.named_parameters():
        if model.parameter_owner(name) in owners:
            parameter.requires_grad_(False)


def _start(model: MultiTaskModel, state: Mapping[str, Tensor], notes: Sequence[str]) -> Start:
    loaded: Counter[str] = Counter()
    fresh: Counter[str] = Counter()
    for name, _ in model.named_parameters():
        (loaded if name in state else fresh)[model.parameter_owner(name)] += 1
    return Start(state, loaded, fresh, tuple(notes))


def _counts(owners: Mapping[str, int]) -> str:
    """Owners with their numbers of tensors, the body's parts as one."""
    grouped: Counter[str] = Counter()
    for owner, count in owners.items():
        grouped[owner.partition("/")[0] if owner.startswith("body/") else owner] += count
    return ", ".join(f"{owner} ({count} tensors)" for owner, count in sorted(grouped.items()))
