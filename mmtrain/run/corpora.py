"""The built corpora that a run reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmtrain.checkpoint import Progress
from mmtrain.recipe import Recipe
from pipelines.errors import CorpusError
from pipelines.plan import one_vocabulary
from pipelines.shards import Manifest, open_task, vocabulary_path
from pipelines.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Corpora:
    """The built splits that a run reads, and the joint vocabulary of those that have text."""

    train: dict[str, Manifest]
    validation: dict[str, Manifest]
    vocabulary: Vocabulary | None


def open_corpora(recipe: Recipe, data_dir: Path) -> Corpora:
    """Opens what was built for a recipe's tasks.

    Raises:
        CorpusError: a split is not built, or is not what the task says; with the remedy.
    """
    splits = {
        split: {
            name: open_task(task, split=split, data_dir=data_dir)
            for name, task in recipe.tasks.items()
        }
        for split in ("train", "validation")
    }
    both = {f"{name} {split}": m for split, some in splits.items() for name, m in some.items()}
    digest = one_vocabulary(both)
    vocabulary = Vocabulary.load(vocabulary_path(data_dir, digest=digest)) if digest else None
    return Corpora(**splits, vocabulary=vocabulary)


def check_corpora(progress: Progress, corpora: Mapping[str, Manifest]) -> None:
    """The training splits must be those that the cursors count in; older checkpoints do not say.

    Raises:
        CorpusError: one has other examples; names it with both digests.
    """
    for task, digest in progress.corpora.items():
        if task in corpora and corpora[task].digest != digest:
            raise CorpusError(
                f"{corpora[task].folder} is not the corpus that the run was saved with at step "
                f"{progress.step}: its digest is {corpora[task].digest[:12]}, it was "
                f"{digest[:12]}; its cursor would count other examples. Bring that corpus back, or "
                "begin anew with another --out"
            )
