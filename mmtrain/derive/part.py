"""A smaller model made out of a trained one: written as a run lies, and registered.

Whatever is kept, tasks or units, the way is the same: the model is cut (`cut/slicing.py`), what
its tasks hold becomes a bundle in memory (`part_of`), and `save_part` writes it with the whole
model as its parent, beside the recipe that goes on training it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mmtrain.bundle import Bundle, Parent
from mmtrain.derive.opened import DeriveError, Opened
from mmtrain.files import BUNDLE, CHECKPOINTS, RECIPE
from mmtrain.recipe import Recipe
from pipelines.files import write_whole

if TYPE_CHECKING:
    from mmtrain.store.models import ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallerModel:
    """A smaller model on disk.

    Args:
        out: its folder.
        bundle: in it.
        recipe: the recipe that goes on training it, where the whole model's was found.
    """

    out: Path
    bundle: Path
    recipe: Path | None

    @property
    def alias(self) -> str | None:
        """What a registry calls it; None: as any other version."""
        return None

    def metrics(self) -> dict[str, float] | None:
        """What was measured of it on whole test splits, named as `results.to_metrics` names it."""
        return None

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it, but for paths."""
        return asdict(self)


P = TypeVar("P", bound=SmallerModel)


def derive(
    opened: Opened,
    make: Callable[[Opened], P],
    *,
    register: str | None = None,
    registry: str | None = None,
) -> "tuple[P, ModelVersion | None]":
    """Makes a smaller model, and registers it if it is given a name.

    Args:
        opened: the whole model.
        make: makes the smaller one out of it.
        register: the registered model to be; None: it is not registered.
        registry: MLflow's URI; None: the one beside the whole model, or as MLflow is set up.

    Raises:
        DeriveError: no registry is known; nothing was made.
        RegistryError: MLflow cannot be reached or refuses.
    """
    if register is None:
        return make(opened), None
    from mmtrain.registry.register import register as register_bundle  # imports MLflow: seconds
    from mmtrain.store.models import CANDIDATE

    uri = opened.registry(registry)
    part = make(opened.with_version(uri))
    alias = part.alias or CANDIDATE
    version = register_bundle(
        part.bundle, name=register, tracking_uri=uri, alias=alias, metrics=part.metrics()
    )
    return part, version


def check_folder(out: Path, *, force: bool, source: str) -> None:
    """Refuses a folder that holds a run, or anything else unless forced.

    Raises:
        DeriveError: says which, and the way out.
    """
    if (out / CHECKPOINTS).exists() or (out / BUNDLE).resolve() == Path(source):
        raise DeriveError(f"{out} is a run's folder; give another --out")
    if out.exists() and any(out.iterdir()) and not force:
        raise DeriveError(f"{out} is not empty; give another --out, or --force to replace it")


def save_part(
    opened: Opened,
    part: Bundle,
    *,
    out: Path,
    recipe: Recipe | None,
    facts: Mapping[str, str] | None = None,
) -> tuple[Path, Path | None]:
    """Writes a smaller model as a run lies.

    Args:
        opened: the whole model, the parent in the smaller one's lineage.
        part: the smaller model, in memory.
        out: the folder; what it has of a model before is replaced.
        recipe: what the smaller model goes on training with; None: an older one goes.
        facts: what else its lineage tells; None: what the whole model's does.

    Returns:
        The bundle's folder, and the recipe's file if there is one.
    """
    whole, tasks = opened.bundle.card, part.card.tasks
    parent = Parent(
        digest=opened.bundle.digest, version=opened.version, tasks=tuple(whole.tasks)
    )  # fmt: skip
    of_tasks = {
        field: {name: v for name, v in getattr(whole.lineage, field).items() if name in tasks}
        for field in ("corpora", "task_steps", "task_seconds")
    }
    lineage = whole.lineage.model_copy(
        update={**of_tasks, "parent": parent, "facts": facts or whole.lineage.facts}
    )
    card = part.card.model_copy(update={"lineage": lineage})
    bundle = replace(part, card=card).save(out / BUNDLE)
    path = out / RECIPE
    if recipe is None:
        path.unlink(missing_ok=True)
        return bundle, None
    write_whole(path, recipe.model_dump_json(indent=1) + "\n")
    return bundle, path
