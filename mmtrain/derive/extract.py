"""Extraction: from a model of many tasks, a smaller one of the same class with some of them.

The smaller model is what its tasks build: their stems and adapters, their heads, and the parts of
the body that those read. Its weights are the whole model's, so its answers are too, to the last
bit. It lies as a run does: `bundle`, and `recipe.json` where the whole model's recipe was found,
narrowed to the tasks; `mmtrain train --init-from` goes on from there.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtrain.bundle import BundleTask
from mmtrain.cut.pruner import part_of
from mmtrain.cut.slicing import cut
from mmtrain.derive.opened import DeriveError, Opened
from mmtrain.derive.part import SmallerModel, check_folder, save_part
from pipelines.errors import UnknownNameError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted(SmallerModel):
    """An extracted model: its tasks, and its parameters beside the whole model's."""

    tasks: tuple[str, ...]
    num_parameters: int
    parent_parameters: int


def extract(
    opened: Opened,
    *,
    out: Path,
    tasks: Sequence[str] = (),
    inputs: Sequence[str] = (),
    force: bool = False,
) -> Extracted:
    """Writes the smaller model of some tasks to `out`.

    Args:
        opened: the whole model.
        out: folder to write; new or empty, unless forced.
        tasks: tasks to keep.
        inputs: in place of tasks: modalities of which all tasks are kept, e.g. "video".
        force: replace an extracted model that is there.

    Raises:
        DeriveError: neither tasks nor modalities, or both; or `out` holds something; or the model
            was trained with masks.
        UnknownNameError: the model has no such task or modality.
    """
    card = opened.bundle.card
    if card.pruning:
        raise DeriveError(
            f"{opened.uri} was trained with masks of {', '.join(card.pruning.subtasks)}; take out "
            f"what some of them need: mmtrain prune {opened.uri} --subtasks ... --out {out}"
        )
    kept = choose_tasks(card.tasks, tasks=tasks, inputs=inputs)
    check_folder(out, force=force, source=opened.uri)
    part = part_of(opened.bundle, cut(opened.bundle.build_model(), {}, tasks=kept))
    recipe = opened.recipe.only(kept) if opened.recipe else None
    bundle, recipe_file = save_part(opened, part, out=out, recipe=recipe)
    count = part.card.num_parameters
    logger.info("extracted %s of %s: %d parameters in %s", ", ".join(kept), opened.uri, count, out)
    return Extracted(
        out=out,
        bundle=bundle,
        recipe=recipe_file,
        tasks=kept,
        num_parameters=count,
        parent_parameters=card.num_parameters,
    )


def choose_tasks(
    known: Mapping[str, BundleTask], *, tasks: Sequence[str], inputs: Sequence[str]
) -> tuple[str, ...]:
    """The tasks named, or all of the modalities named, in the model's order.

    Raises:
        DeriveError: neither is named, or both are.
        UnknownNameError: the model has no such task or modality; names the nearest.
    """
    modalities = {name: task.inputs.modality for name, task in known.items()}
    has = tuple(dict.fromkeys(modalities.values()))
    if bool(tasks) == bool(inputs):
        raise DeriveError(
            "say what to keep: --modality or --task, one of the two; "
            f"the model has modalities {', '.join(has)} and tasks {', '.join(known)}"
        )
    for kind, names, there in (("task", tasks, tuple(known)), ("modality", inputs, has)):
        for name in names:
            if name not in there:
                raise UnknownNameError(f"{kind} of the model", name, there)
    return tuple(name for name, of in modalities.items() if name in tasks or of in inputs)
