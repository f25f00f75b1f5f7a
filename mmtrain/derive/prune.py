"""Pruning: from a model that was trained with masks, the smaller one that a subset of its subtasks
needs, made without training.

    masks of the subset | cut | recalibrate | compare with the whole | save | register

The smaller model lies as a run does: `bundle`, `recipe.json` to go on training with, and
`prune.json` with the comparison. Where the subset leaves classes out, `corpora` holds what it can
be measured and trained on: the examples of the classes that stay.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtrain.bundle import Bundle, save_bundle
from mmtrain.cut.budget import threshold_for
from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.pruner import Pruner, mask_digest
from mmtrain.cut.recalibrate import batch_norms
from mmtrain.cut.subset import Subset
from mmtrain.derive.comparison import Measured, compare, recalibrate_on, task_inputs
from mmtrain.derive.extract import (
    Opened,
    check_folder,
    choose_registry,
    needs_vocabulary,
    part_lineage,
    save_recipe,
    with_version,
)
from mmtrain.derive.subset_corpora import SubsetCorpora
from mmtrain.files import BUNDLE
from mmtrain.masks.banks import SubtaskMasks
from mmtrain.models.model import MultiTaskModel
from mmtrain.predict.predictor import Predictor
from mmtrain.recipe import Recipe
from pipelines.files import write_whole
from pipelines.shards import open_manifest, shard_folder

if TYPE_CHECKING:
    from mmtrain.store.models import ModelVersion

logger = logging.getLogger(__name__)

COMPARISON, CORPORA = "prune.json", "corpora"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be cut.

    Args:
        subtasks: basis subtasks; none: those of `classes`.
        classes: classes that stay; none: all of the subtasks.
        budget: share of the whole model's operations at most; None: what the masks keep.
        recalibration_batches: unlabelled batches of 64 training examples that batch norms take
            their statistics of; 0: they keep the whole model's.
        measures: whether the models are compared on the test split.
        limit: examples of a test split at most; None: all.
    """

    subtasks: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    budget: float | None = None
    recalibration_batches: int = 20
    measures: bool = True
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Pruned:
    """A cut model: where it lies, what it is for, and how it compares.

    Args:
        out: its folder.
        bundle: in it.
        subset: subtasks and classes.
        threshold: utility above which units were kept.
        emptied: groups in which no unit reached it, so that the best one was kept.
        recalibrated: batches that batch norms took their statistics of.
        kept: by group, units kept and units there were.
        rows: the whole model, masks alone, the cut model; empty if nothing was measured.
        recipe: the recipe to go on with, where the whole model's was found.
        corpora: data folder of the classes that stay, where some were left out.
    """

    out: Path
    bundle: Path
    subset: Subset
    threshold: float
    emptied: tuple[str, ...]
    recalibrated: int
    kept: Mapping[str, tuple[int, int]]
    rows: tuple[Measured, ...]
    recipe: Path | None
    corpora: Path | None

    def metrics(self) -> dict[str, float]:
        """What was measured of the cut model, named as `results.to_metrics` names it."""
        cut = self.rows[-1].scores if self.rows else {}
        return {
            f"test/{task}/{metric}": value
            for task, values in cut.items()
            for metric, value in values.items()
        }

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return {
            "out": str(self.out),
            "bundle": str(self.bundle),
            "subtasks": list(self.subset.subtasks),
            "tasks": list(self.subset.tasks),
            "classes": {task: list(ids) for task, ids in self.subset.classes.items()},
            "threshold": self.threshold,
            "emptied": list(self.emptied),
            "recalibrated": self.recalibrated,
            "kept": {group: list(counts) for group, counts in self.kept.items()},
            "rows": [row.to_dict() for row in self.rows],
            "recipe": str(self.recipe) if self.recipe else None,
            "corpora": str(self.corpora) if self.corpora else None,
        }


def prune(
    opened: Opened, asked: Asked, *, out: Path, data_dir: Path, force: bool = False
) -> Pruned:
    """Writes the smaller model of a subset to `out`.

    Args:
        opened: the whole model.
        asked: what is to be cut.
        out: folder to write; new or empty, unless forced.
        data_dir: folder of the corpora that the model was trained on.
        force: replace a smaller model that is there.

    Raises:
        NoMasksError: the model was trained without masks.
        UnknownNameError: it has no such subtask or class.
        SubsetError: nothing is named, or the subtasks have no such class.
        BudgetError: it is no share, or cannot be reached.
        ExtractError: `out` holds something.
        CorpusError: a corpus is needed and not built, or is another than the model's.
    """
    pruner = Pruner(opened.bundle, name=opened.uri)
    subset = pruner.subset(asked.subtasks, classes=asked.classes)
    check_folder(out, force=force, source=opened.uri)
    reader = Predictor(opened.bundle)
    corpora = SubsetCorpora(reader, subset=subset, data_dir=data_dir)
    threshold = _threshold(pruner, subset, asked, corpora=corpora, reader=reader)
    masks = pruner.masks(subset, threshold=threshold)
    model = pruner.cut(subset, threshold=threshold)
    batches: list[TaskInputs] = []
    if asked.recalibration_batches and batch_norms(model):
        batches = corpora.unlabelled(num_batches=asked.recalibration_batches)
    recalibrate_on(model, batches)
    narrowed = corpora.narrow(out / CORPORA)
    rows: tuple[Measured, ...] = ()
    if asked.measures:
        data = narrowed or data_dir
        folders = {name: shard_folder(data, task=name, split="test") for name in subset.tasks}
        manifests = {
            name: open_manifest(folder).with_inputs(reader.task(name).inputs)
            for name, folder in folders.items()
        }
        rows = compare(
            pruner, subset, model=model, masks=masks, batches=batches, manifests=manifests,
            limit=asked.limit,
        )  # fmt: skip
    bundle = _save(opened, pruner, subset, model=model, masks=masks, rows=rows, out=out)
    sizes = {group.name: group.size for group in pruner.bank.groups}
    pruned = Pruned(
        out=out,
        bundle=bundle,
        subset=subset,
        threshold=threshold,
        emptied=masks.emptied(),
        recalibrated=len(batches),
        kept={name: (int(kept.sum()), sizes[name]) for name, kept in masks.kept.items()},
        rows=rows,
        recipe=save_recipe(_recipe(opened.recipe, pruner, subset, model=model), out=out),
        corpora=narrowed,
    )
    write_whole(out / COMPARISON, json.dumps(pruned.to_dict(), indent=1) + "\n")
    logger.info("cut %s of %s: %s", subset, opened.uri, out)
    return pruned


def prune_and_register(
    opened: Opened, asked: Asked, *, name: str, registry: str | None, **where: Any
) -> tuple[Pruned, "ModelVersion"]:
    """`prune`, then the smaller model as a version of `name` with an alias for its subset.

    Args:
        opened: the whole model.
        asked: what is to be cut.
        name: the registered model to be.
        registry: MLflow's URI; None: the one beside the whole model, or as MLflow is set up.
        where: further arguments of `prune`.

    Raises:
        ExtractError: no registry is known; or as `prune` says.
        RegistryError: MLflow cannot be reached or refuses.
    """
    from mmtrain.registry.register import register as register_bundle  # imports MLflow: seconds

    uri = choose_registry(opened, registry)
    pruned = prune(with_version(opened, registry=uri), asked, **where)
    made = register_bundle(
        pruned.bundle,
        name=name,
        tracking_uri=uri,
        alias=pruned.subset.alias,
        metrics=pruned.metrics() if asked.limit is None else None,
    )
    return pruned, made


def registered_cuts(opened: Opened, *, registry: str | None) -> list["ModelVersion"]:
    """Versions that were cut from a model, oldest first.

    Raises:
        ExtractError: no registry is known.
        RegistryError: MLflow cannot be reached.
    """
    from mmtrain.store import models as model_registry  # imports MLflow: seconds

    uri = choose_registry(opened, registry)
    found = model_registry.find_parts(opened.bundle.digest, tracking_uri=uri)
    return [version for version in found if "subset" in version.lineage]


def _threshold(
    pruner: Pruner, subset: Subset, asked: Asked, *, corpora: SubsetCorpora, reader: Predictor
) -> float:
    """The trained threshold, or the one that meets the budget."""
    if asked.budget is None:
        return pruner.masks(subset).threshold
    first = corpora.first(num_examples=1)
    inputs = [task_inputs(reader, task, examples) for task, examples in first.items()]
    return threshold_for(pruner, subset, budget=asked.budget, inputs=inputs)


def _recipe(
    recipe: Recipe | None, pruner: Pruner, subset: Subset, *, model: MultiTaskModel
) -> Recipe | None:
    """The whole model's recipe, of the subset's tasks and classes, for the cut model."""
    if recipe is None:
        return None
    part = pruner.part(model, subset=subset).card.tasks
    only = recipe.only(subset.tasks)
    tasks = {
        name: task.model_copy(update={"targets": part[name].targets})
        for name, task in only.tasks.items()
    }
    name = "_".join((recipe.name, *subset.subtasks))
    return only.with_(name=name, tasks=tasks, model=model.config, pruning=None)


def _save(
    opened: Opened,
    pruner: Pruner,
    subset: Subset,
    *,
    model: MultiTaskModel,
    masks: SubtaskMasks,
    rows: Sequence[Measured],
    out: Path,
) -> Path:
    """Writes the bundle of the cut model, with where it comes from."""
    part: Bundle = pruner.part(model, subset=subset)
    facts = _facts(pruner, subset, masks=masks, rows=rows)
    lineage = part_lineage(opened, kept=subset.tasks).model_copy(update={"facts": facts})
    return save_bundle(
        out / BUNDLE,
        model=part.card.model,
        tasks=part.card.tasks,
        state=part.state,
        vocabulary=part.vocabulary if needs_vocabulary(part.card.tasks) else None,
        lineage=lineage,
    )


def _facts(
    pruner: Pruner, subset: Subset, *, masks: SubtaskMasks, rows: Sequence[Measured]
) -> dict[str, str]:
    """What lineage tells of a cut: subset, masks, scores of the whole and the cut model."""
    facts = {
        "subset": str(subset),
        "subtasks": ",".join(subset.subtasks),
        "gamma": f"{pruner.bank.config.gamma:g}",
        "threshold": f"{masks.threshold:g}",
        "mask_digest": mask_digest(masks.kept),
        "kept_share": f"{masks.kept_share():.4f}",
    }
    for task, ids in subset.classes.items():
        facts[f"classes.{task}"] = ",".join(map(str, ids))
    if not rows:
        return facts
    whole, _, cut = rows
    facts["flops_share"] = f"{cut.flops / whole.flops:.4f}"
    facts["parameter_share"] = f"{cut.parameters / whole.parameters:.4f}"
    for prefix, row in (("score", cut), ("whole_score", whole)):
        for task, values in row.scores.items():
            metric, value = next(iter(values.items()))
            facts[f"{prefix}.{task}.{metric}"] = f"{value:.4f}"
    return facts
