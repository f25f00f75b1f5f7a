"""Bundles: a trained model as a folder that stands alone, without corpora, recipe or trainer.

    model.safetensors   weights, fp32
    vocabulary.json     the joint vocabulary, where a task needs one
    bundle.json         model config, tasks with their features, lineage, size and digest of both

A bundle appears whole or not at all, and is data only: nothing in it is unpickled or imported.
What its card does not list is not read; what it lists is checked before it is used.
"""

import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import mmtrain
import pipelines
from mmtrain.masks.attach import masked_model_with
from mmtrain.masks.config import PruningConfig
from mmtrain.models.fitting import filled
from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec
from pipelines import modalities
from pipelines.errors import MMTrainError, first_problem
from pipelines.files import read_retried, replace_folder, write_error
from pipelines.modalities import AnyFeature
from pipelines.names import Name
from pipelines.shards import file_digest
from pipelines.task import Task
from pipelines.vocabulary import Vocabulary

CARD, WEIGHTS, VOCABULARY = "bundle.json", "model.safetensors", "vocabulary.json"
_MAX_CARD_BYTES = 64 * 2**20
_MAX_VOCABULARY_BYTES = 256 * 2**20


class BundleError(MMTrainError):
    """A bundle is missing, incomplete, changed, or not one that this version reads."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleTask(_Stored):
    """What predicting and measuring a task needs: the model's part, both features, metrics."""

    spec: TaskSpec
    inputs: AnyFeature
    targets: AnyFeature
    max_target_length: int = Field(ge=1, description="Decoding stops here, in tokens.")
    metrics: tuple[Name, ...] = Field(
        default=(), description="What it is measured by; none: as its corpus was built."
    )
    baseline: Name | None = Field(default=None, description="What it has to beat, likewise.")


class Parent(_Stored):
    """The larger model that a bundle was taken out of."""

    digest: str = Field(description="Of its bundle.")
    version: str | None = Field(default=None, description="models:/NAME/VERSION, if registered.")
    tasks: tuple[str, ...] = Field(description="All tasks that it had.")


class Lineage(_Stored):
    """Where a bundle comes from, and how long its tasks were trained."""

    recipe: str = Field(description="The recipe's name.")
    recipe_digest: str
    code_version: str = Field(description="Version of the packages and digest of their sources.")
    corpora: dict[str, str] = Field(description="Digest of each task's training split.")
    run_id: str | None = Field(default=None, description="MLflow run.")
    step: int = Field(ge=0, description="Optimizer steps taken.")
    seconds: float = Field(default=0.0, ge=0, description="Wall time of the training.")
    task_steps: dict[str, int] = Field(default={}, description="Steps that trained each task.")
    task_seconds: dict[str, float] = Field(default={}, description="Training time of these steps.")
    parent: Parent | None = Field(default=None, description="Model that this one is a part of.")
    init_from: str | None = Field(default=None, description="Weights that training started from.")
    facts: dict[str, str] = Field(
        default={}, description="What else tells how it came to be; tags of a registered version."
    )


class BundleFile(_Stored):
    """A file of the bundle as it was written."""

    num_bytes: int = Field(ge=1)
    digest: str = Field(description="SHA-256.")


class Card(_Stored):
    """All of `bundle.json`."""

    version: Literal[1] = 1
    model: SerializeAsAny[ModelConfig]
    tasks: dict[str, BundleTask]
    lineage: Lineage
    pruning: PruningConfig | None = Field(
        default=None, description="Subtasks whose masks the weights hold; None: there are none."
    )
    num_parameters: int
    files: dict[Literal["model.safetensors", "vocabulary.json"], BundleFile]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded bundle. `digest` is its card's, which names the digests of the rest."""

    card: Card
    state: Mapping[str, Tensor]
    vocabulary: Vocabulary | None
    digest: str

    def save(self, folder: Path) -> Path:
        """Writes the bundle to a folder; see `save_bundle`."""
        card = self.card
        return save_bundle(
            folder, model=card.model, tasks=card.tasks, state=self.state,
            vocabulary=self.vocabulary, lineage=card.lineage, pruning=card.pruning,
        )  # fmt: skip

    def build_model(self) -> MultiTaskModel:
        """The model with the bundle's weights and masks, in evaluation mode, on the CPU.

        Its gates have none of the masks yet; see `put_on_masks`.
        """
        specs, pruning = [task.spec for task in self.card.tasks.values()], self.card.pruning
        try:
            return masked_model_with(self.card.model, specs, self.state, pruning=pruning)
        except RuntimeError as error:
            raise BundleError(f"weights are of another model than the card's: {error}") from None


def bundle_task(task: Task, *, spec: TaskSpec) -> BundleTask:
    """What a bundle keeps of a task; decoding stops at the longest target that could be built."""
    return BundleTask(
        spec=spec, inputs=task.inputs, targets=task.targets,
        max_target_length=getattr(task.targets, "max_tokens", 1),  # a class is one answer
        metrics=task.metrics, baseline=task.baseline,
    )  # fmt: skip


def lineage_tags(bundle: Bundle) -> dict[str, str]:
    """Where a registered version comes from, as its tags."""
    lineage = bundle.card.lineage
    parent = lineage.parent
    tags = {
        "bundle_digest": bundle.digest,
        "recipe": lineage.recipe,
        "recipe_digest": lineage.recipe_digest,
        "code_version": lineage.code_version,
        "step": str(lineage.step),
        "tasks": ",".join(bundle.card.tasks),
        "training_run_id": lineage.run_id,
        "init_from": lineage.init_from,
        "parent_digest": parent and parent.digest,
        "parent_tasks": parent and ",".join(parent.tasks),
        "parent_version": parent and parent.version,
        **lineage.facts,
        **{f"corpus.{task}": digest for task, digest in lineage.corpora.items()},
    }
    return {name: value for name, value in tags.items() if value}


@cache
def code_version() -> str:
    """Version of the packages with a digest of their sources, e.g. "0.1.0+3fd2a90c11ab"."""
    digest = hashlib.sha256()
    for package in (mmtrain, pipelines):
        folder = Path(package.__path__[0])
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder.parent).as_posix().encode())
            digest.update(path.read_bytes())
    return f"{importlib.metadata.version('mmtrain')}+{digest.hexdigest()[:12]}"


def save_bundle(
    folder: Path,
    *,
    model: ModelConfig,
    tasks: Mapping[str, BundleTask],
    state: Mapping[str, Tensor],
    vocabulary: Vocabulary | None,
    lineage: Lineage,
    pruning: PruningConfig | None = None,
) -> Path:
    """Writes a bundle to `folder`, in place of one that is there, whole or not at all.

    Args:
        folder: where the bundle will be; it is returned.
        model: config that builds the model.
        tasks: tasks that the bundle predicts.
        state: full weights by parameter name, as the model's `state_dict` names them.
        vocabulary: the joint vocabulary; None when no task has text.
        lineage: where the weights come from.
        pruning: subtasks whose masks are among the weights; None: there are none.

    Raises:
        BundleError: it cannot be written; nothing of it is left, and what was there stands.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file(_apart(state), part / WEIGHTS)
        if vocabulary is not None:
            vocabulary.save(part / VOCABULARY)
        card = Card(
            model=model,
            tasks=dict(tasks),
            lineage=lineage,
            pruning=pruning,
            num_parameters=sum(tensor.numel() for tensor in state.values()),
            files={path.name: _describe(path) for path in sorted(part.iterdir())},  # type: ignore[misc]  # names just written
        )
        (part / CARD).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
        replace_folder(part, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)  # first: it would take what room is left
        size = sum(tensor.nbytes for tensor in state.values())
        cause = error if isinstance(error, OSError) else OSError(str(error))
        raise BundleError(str(write_error(cause, folder, needed_bytes=size))) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def load_bundle(folder: Path) -> Bundle:
    """Reads a bundle, checking size and digest of every file before it is used.

    Raises:
        BundleError: missing, changed, or of another version; the file is named.
    """
    card, digest = load_card(folder)
    for name, expected in card.files.items():
        _check(folder / name, expected)
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{folder / WEIGHTS} cannot be read: {error}") from None
    size = sum(tensor.numel() for tensor in state.values())
    if size != card.num_parameters:
        raise BundleError(
            f"{folder / WEIGHTS} holds {size} numbers, {CARD} says {card.num_parameters}; "
            "export the model again"
        )
    vocabulary = Vocabulary.load(folder / VOCABULARY) if VOCABULARY in card.files else None
    return Bundle(card, state, vocabulary, digest)


def load_card(folder: Path) -> tuple[Card, str]:
    """The bundle's card with its digest; weights are neither read nor checked.

    Raises:
        BundleError: there is no card, or it is not one that this version reads.
    """
    path = folder / CARD
    if not path.is_file():
        raise BundleError(f"no bundle at {folder}: it has no {CARD}; `mmtrain train` writes one")
    if path.stat().st_size > _MAX_CARD_BYTES:
        raise BundleError(f"{path} has {path.stat().st_size} bytes, at most {_MAX_CARD_BYTES}")
    contents = read_retried(path.read_bytes, path=path)
    try:
        card = Card.model_validate_json(contents)
    except ValidationError as error:
        problem = first_problem(error)
        raise BundleError(f"{path} is not a card that this version reads: {problem}") from None
    model = filled(card.model, card.tasks, is_saved=True)
    card = card.model_copy(update={"model": model})
    for name in (WEIGHTS, VOCABULARY) if needs_vocabulary(card.tasks) else (WEIGHTS,):
        if name not in card.files:
            raise BundleError(f"{path} lists no {name}; export the model again")
    return card, hashlib.sha256(contents).hexdigest()


def needs_vocabulary(tasks: Mapping[str, BundleTask]) -> bool:
    """Whether a task takes or gives text."""
    features = [feature for task in tasks.values() for feature in (task.inputs, task.targets)]
    return any(modalities.is_text(feature.modality) for feature in features)


def find_bundle(path: Path) -> Path:
    """The bundle at `path`: itself, its `bundle` folder, or the newest of its `bundles`.

    Raises:
        BundleError: there is none; says where it was looked for.
    """
    for folder in (path, path / "bundle"):
        if (folder / CARD).is_file():
            return folder
    folders = [card.parent for card in (path / "bundles").glob(f"*/{CARD}")]
    if not folders:
        raise BundleError(
            f"no bundle at {path}, {path / 'bundle'} or in {path / 'bundles'}; "
            "give a run folder of `mmtrain train`, a bundle folder or models:/NAME@ALIAS"
        )
    return max(folders, key=lambda folder: (load_card(folder)[0].lineage.step, folder.name))


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors that share no memory: safetensors writes each name by itself."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return apart


def _describe(path: Path) -> BundleFile:
    return BundleFile(num_bytes=path.stat().st_size, digest=file_digest(path))


def _check(path: Path, expected: BundleFile) -> None:
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path} is missing; export the model again")
    size = path.stat().st_size
    if path.name == VOCABULARY and size > _MAX_VOCABULARY_BYTES:
        raise BundleError(f"{path} has {size} bytes, at most {_MAX_VOCABULARY_BYTES}")
    if size != expected.num_bytes:
        raise BundleError(f"{path} has {size} bytes, written {expected.num_bytes}; it changed")
    if _describe(path).digest != expected.digest:
        raise BundleError(f"{path} changed since it was written (SHA-256 differs)")
