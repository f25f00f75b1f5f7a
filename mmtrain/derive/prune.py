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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmtrain.bundle import Bundle
from mmtrain.cut.budget import threshold_for
from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.pruner import Pruner, mask_digest
from mmtrain.cut.recalibrate import batch_norms, recalibrate
from mmtrain.cut.subset import Subset
from mmtrain.derive.comparison import ComparedNetwork, compare
from mmtrain.derive.opened import Opened
from mmtrain.derive.part import SmallerModel, check_folder, save_part
from mmtrain.derive.subset_corpora import SubsetCorpora
from mmtrain.masks.banks import SubtaskMasks
from mmtrain.predict.predictor import Predictor
from mmtrain.recipe import Recipe
from pipelines.files import write_whole

if TYPE_CHECKING:
    from mmtrain.store.models import ModelVersion

logger = logging.getLogger(__name__)

COMPARISON, CORPORA = "prune.json", "corpora"


@dataclass(frozen=True, slots=True)
class PruneConfig:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned(SmallerModel):
    """A cut model: what it is for, and how it compares.

    Args:
        subset: subtasks and classes.
        threshold: utility above which units were kept.
        emptied: groups in which no unit reached it, so that the best one was kept.
        recalibrated: batches that batch norms took their statistics of.
        kept: by group, units kept and units there were.
        rows: the whole model, masks alone, the cut model; empty if nothing was measured.
        limit: examples of a test split that it was measured on at most; None: all.
        corpora: data folder of the classes that stay, where some were left out.
    """

    subset: Subset
    threshold: float
    emptied: tuple[str, ...]
    recalibrated: int
    kept: Mapping[str, tuple[int, int]]
    rows: tuple[ComparedNetwork, ...]
    limit: int | None
    corpora: Path | None

    @property
    def alias(self) -> str:
        """What a registry calls it: its subset."""
        return self.subset.alias

    def metrics(self) -> dict[str, float] | None:
        """What was measured of it on whole test splits, named as `results.to_metrics` names it."""
        if not self.rows or self.limit is not None:
            return None
        return {
            f"test/{task}/{metric}": value
            for task, values in self.rows[-1].scores.items()
            for metric, value in values.items()
        }

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it, but for paths."""
        fields = asdict(self)
        subset = fields.pop("subset")
        del fields["limit"], subset["names"]
        return fields | subset


def prune(
    opened: Opened, config: PruneConfig, *, out: Path, data_dir: Path, force: bool = False
) -> Pruned:
    """Writes the smaller model of a subset to `out`.

    Args:
        opened: the whole model.
        config: what is to be cut.
        out: folder to write; new or empty, unless forced.
        data_dir: folder of the corpora that the model was trained on.
        force: replace a smaller model that is there.

    Raises:
        NoMasksError: the model was trained without masks.
        UnknownNameError: it has no such subtask or class.
        SubsetError: nothing is named, or the subtasks have no such class.
        BudgetError: it is no share, or cannot be reached.
        DeriveError: `out` holds something.
        CorpusError: a corpus is needed and not built, or is another than the model's.
    """
    reader = Predictor(opened.bundle)
    pruner = Pruner(opened.bundle, model=reader.model, name=opened.uri)
    subset = pruner.subset(config.subtasks, classes=config.classes)
    check_folder(out, force=force, source=opened.uri)
    corpora = SubsetCorpora(reader, subset=subset, data_dir=data_dir)
    threshold = pruner.bank.config.tau
    if config.budget is not None:
        inputs = corpora.first()
        threshold = threshold_for(pruner, subset, budget=config.budget, inputs=inputs)
    masks = pruner.masks(subset, threshold=threshold)
    model = pruner.cut(subset, threshold=threshold)
    batches: list[TaskInputs] = []
    if config.recalibration_batches and batch_norms(model):
        batches = corpora.unlabelled(num_batches=config.recalibration_batches)
        recalibrate(model, batches)
    narrowed = corpora.narrow(out / CORPORA)
    rows: tuple[ComparedNetwork, ...] = ()
    if config.measures:
        rows = compare(
            pruner, subset, model=model, masks=masks, batches=batches,
            manifests=corpora.test(narrowed or data_dir), limit=config.limit,
        )  # fmt: skip
    part = pruner.part(model, subset=subset)
    facts = _facts(pruner, subset, masks=masks, rows=rows)
    recipe = _recipe(opened.recipe, part, subset) if opened.recipe else None
    bundle, recipe_file = save_part(opened, part, out=out, recipe=recipe, facts=facts)
    pruned = Pruned(
        out=out, bundle=bundle, recipe=recipe_file, subset=subset, threshold=threshold,
        emptied=masks.emptied(), recalibrated=len(batches),
        kept={name: (int(kept.sum()), len(kept)) for name, kept in masks.kept.items()},
        rows=rows, limit=config.limit, corpora=narrowed,
    )  # fmt: skip
    write_whole(out / COMPARISON, json.dumps(pruned.to_dict(), indent=1, default=str) + "\n")
    logger.info("cut %s of %s: %s", subset, opened.uri, out)
    return pruned


def registered_cuts(opened: Opened, *, registry: str | None) -> list["ModelVersion"]:
    """Versions that were cut from a model, oldest first.

    Raises:
        DeriveError: no registry is known.
        RegistryError: MLflow cannot be reached.
    """
    from mmtrain.store.models import find_parts  # imports MLflow: seconds

    parts = find_parts(opened.bundle.digest, tracking_uri=opened.registry(registry))
    return [version for version in parts if "subset" in version.lineage]


def _recipe(whole: Recipe, part: Bundle, subset: Subset) -> Recipe:
    """The whole model's recipe, of the subset's tasks and classes, for the cut model."""
    only = whole.only(subset.tasks)
    tasks = {
        name: task.model_copy(update={"targets": part.card.tasks[name].targets})
        for name, task in only.tasks.items()
    }
    name = "_".join((whole.name, *subset.subtasks))
    return only.with_(name=name, tasks=tasks, model=part.card.model, pruning=None)


def _facts(
    pruner: Pruner, subset: Subset, *, masks: SubtaskMasks, rows: Sequence[ComparedNetwork]
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
