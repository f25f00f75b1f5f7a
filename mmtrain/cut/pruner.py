"""The pruner: a trained model with its masks, from which smaller models are cut.

Nothing is trained again. A cut model is an ordinary model of the same class, with a bundle's card
of its own; batch norms still have the whole model's statistics, see `recalibrate.py`.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmtrain.bundle import Bundle, needs_vocabulary
from mmtrain.cut.slicing import cut
from mmtrain.cut.subset import Subset, choose_subset
from mmtrain.layers.units import put_on
from mmtrain.masks.attach import masks_of
from mmtrain.masks.banks import MaskBank, SubtaskMasks
from mmtrain.masks.subtasks import resolve_subtasks
from mmtrain.models.model import MultiTaskModel
from pipelines.errors import MMTrainError
from pipelines.narrow import narrowed_feature


class NoMasksError(MMTrainError):
    """A model that was trained without masks is to be cut."""


class Pruner:
    """Cuts a model down to subsets of its subtasks; the model itself stays as it is.

    Args:
        bundle: the trained model.
        model: the bundle's, if it is built already.
        name: what an error calls it.

    Raises:
        NoMasksError: it was trained without masks; says how to train some on it.
    """

    def __init__(
        self, bundle: Bundle, *, model: MultiTaskModel | None = None, name: str = "MODEL"
    ) -> None:
        config = bundle.card.pruning
        if config is None:
            raise NoMasksError(
                f"{name} has no masks: it was trained without subtasks, or is cut already. Train "
                f"masks on it: mmtrain train --init-from {name} --set "
                """'pruning={"subtasks": {"a": ["TASK"], "b": ["TASK"]}, "train": "masks"}'"""
            )
        self.bundle = bundle
        self.model = model or bundle.build_model()
        bank = masks_of(self.model)
        assert bank is not None, "the card says that there are masks"
        self.bank: MaskBank = bank
        self._targets = {name: task.targets for name, task in bundle.card.tasks.items()}
        losses = {name: task.spec.loss for name, task in bundle.card.tasks.items()}
        self.subtasks = resolve_subtasks(config, targets=self._targets, losses=losses)

    @property
    def device(self) -> str:
        """Where the model is."""
        return str(next(self.model.parameters()).device)

    def subset(self, names: Sequence[str] = (), *, classes: Sequence[str] = ()) -> Subset:
        """The subset of these basis subtasks, or of these classes of them; see `choose_subset`."""
        return choose_subset(self.subtasks, targets=self._targets, names=names, classes=classes)

    @torch.no_grad()
    def masks(self, subset: Subset, *, threshold: float | None = None) -> SubtaskMasks:
        """The masks of a subset; `threshold` in place of the one that they were trained with."""
        return self.bank.masks(subset.subtasks, threshold=threshold)

    def cut(self, subset: Subset, *, threshold: float | None = None) -> MultiTaskModel:
        """The smaller model: units, nets, heads and scores that the subset needs."""
        masks = self.masks(subset, threshold=threshold)
        model = cut(
            self.model, masks.kept, scale=masks.scale, tasks=subset.tasks, outputs=subset.classes
        )
        return model.to(self.device)

    def uncut(self, subset: Subset, *, masks: SubtaskMasks | None = None) -> MultiTaskModel:
        """A model of the subset's tasks and scores with all units, and these masks at its gates."""
        model = cut(self.model, {}, tasks=subset.tasks, outputs=subset.classes)
        paths = {path for path, _ in model.named_modules()}
        gates = masks.gates if masks else {}
        put_on(model, {path: mask for path, mask in gates.items() if path in paths})
        return model.to(self.device)

    def whole_masks(self) -> SubtaskMasks:
        """The masks of all subtasks together, which the model has when nothing is cut."""
        return self.masks(Subset(self.bank.subtasks, ()))

    def part(self, model: MultiTaskModel, *, subset: Subset) -> Bundle:
        """A bundle, in memory alone, of a model with the subset's tasks and scores."""
        return part_of(self.bundle, model, classes=subset.classes)


def part_of(
    bundle: Bundle, model: MultiTaskModel, *, classes: Mapping[str, Sequence[int]] | None = None
) -> Bundle:
    """A bundle, in memory alone, of a smaller model that was cut out of a bundle's.

    Args:
        bundle: of the whole model.
        model: with some of its tasks.
        classes: by task, ids of the classes that its scores are left for; of others all are.
    """
    tasks = {
        name: bundle.card.tasks[name].model_copy(update={"spec": spec})
        for name, spec in model.tasks.items()
    }
    for name, ids in (classes or {}).items():
        targets = narrowed_feature(tasks[name].targets, classes=ids)
        tasks[name] = tasks[name].model_copy(update={"targets": targets})
    state = model.state_dict()
    card = bundle.card.model_copy(
        update={
            "model": model.config,
            "tasks": tasks,
            "pruning": None,
            "num_parameters": sum(value.numel() for value in state.values()),
            "files": {},
        }
    )
    vocabulary = bundle.vocabulary if needs_vocabulary(tasks) else None
    digest = hashlib.sha256(card.model_dump_json().encode()).hexdigest()
    return Bundle(card, state, vocabulary, digest)


def mask_digest(kept: Mapping[str, Tensor]) -> str:
    """SHA-256 of what is kept of each group, 16 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(kept):
        digest.update(name.encode())
        digest.update(kept[name].cpu().to(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
