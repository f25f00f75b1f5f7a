"""Networks of a server: the models that it was given, cuts and parts of them, and which answers.

Without subtasks, the first whole model that has the task answers. A request that names subtasks is
answered by the smallest registered network that covers them; if there is none smaller than the
whole, by a cut made in memory where the masks allow it, and else by the whole.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmtrain.bundle import BundleTask, find_bundle
from mmtrain.cut.pruner import Pruner
from mmtrain.cut.recalibrate import batch_norms
from mmtrain.cut.subset import Subset
from mmtrain.derive.opened import Opened, open_model
from mmtrain.predict.predictor import Predictor
from mmtrain.serving.problems import RequestError
from pipelines.errors import MMTrainError, UnknownNameError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a replica finds a model: an absolute folder or models:/NAME/VERSION, and its registry.

    `named` models were asked for; the others are registered cuts and parts of them.
    """

    uri: str
    tracking_uri: str | None
    named: bool


class ServingError(MMTrainError):
    """A server that cannot start."""


class Network:
    """A model that answers.

    Args:
        predictor: the model.
        uri: where it was found.
        named: whether it was asked for by name; a cut in memory was not.
        subset: what a cut in memory is for.
        root: digest of the model that a cut in memory is of.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        uri: str,
        named: bool = True,
        subset: Subset | None = None,
        root: str | None = None,
    ) -> None:
        card = predictor.bundle.card
        facts = card.lineage.facts
        self.predictor, self.uri, self.named = predictor, uri, named
        self.tasks: Mapping[str, BundleTask] = card.tasks
        self.num_parameters = card.num_parameters
        self.is_cut = subset is not None or "subset" in facts
        parent = card.lineage.parent
        digest = predictor.bundle.digest
        self.root = root or (parent.digest if parent else digest)
        if subset is not None:
            self.subtasks = subset.subtasks
        elif self.is_cut:
            self.subtasks = tuple(facts.get("subtasks", "").split(","))
        else:
            self.subtasks = tuple(card.pruning.subtasks if card.pruning else card.tasks)
        self.classes = {
            name.removeprefix("classes."): frozenset(map(int, ids.split(",")))
            for name, ids in facts.items()
            if name.startswith("classes.")
        }

    @cached_property
    def pruner(self) -> Pruner | None:
        """What tells subsets of its subtasks; None: it has no masks."""
        if self.predictor.bundle.card.pruning is None:
            return None
        return Pruner(self.predictor.bundle, model=self.predictor.model)

    @cached_property
    def cuts_in_memory(self) -> bool:
        """Whether subsets are cut without data: it has masks, and no batch norms."""
        return self.pruner is not None and not batch_norms(self.predictor.model)

    def covers(self, subset: Subset) -> bool:
        """Whether it answers all of a subset, among all of its classes."""
        return (
            set(subset.subtasks) <= set(self.subtasks)
            and set(subset.tasks) <= set(self.tasks)
            and all(
                set(ids) <= self.classes.get(task, frozenset(ids))
                for task, ids in subset.classes.items()
            )
        )

    def to_dict(self, *, whole: "Network") -> dict[str, object]:
        """As JSON holds it."""
        return {
            "uri": self.uri,
            "tasks": list(self.tasks),
            "subtasks": list(self.subtasks),
            "parameters": self.num_parameters,
            "whole_parameters": whole.num_parameters,
            "recipe": self.predictor.bundle.card.lineage.recipe,
        }


@dataclass(frozen=True, slots=True)
class Chosen:
    """Who answers.

    Args:
        network: the one that does.
        whole: the model that it is, or is a part of.
        tasks: that it answers.
        subset: to be cut in memory first; None: the network is there.
    """

    network: Network
    whole: Network
    tasks: tuple[str, ...]
    subset: Subset | None = None


class Networks:
    """All networks of a server."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = tuple(networks)
        self.tasks: dict[str, BundleTask] = {}
        for network in sorted(networks, key=lambda network: network.is_cut):
            for name, task in network.tasks.items():
                self.tasks.setdefault(name, task)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of inputs."""
        return tuple(dict.fromkeys(task.inputs.modality for task in self.tasks.values()))

    def whole(self, task: str) -> Network:
        """The first whole model that has the task, or else the first network.

        Raises:
            UnknownNameError: no network has it.
        """
        having = [network for network in self.networks if task in network.tasks]
        if not having:
            raise UnknownNameError("task", task, tuple(self.tasks))
        return min(having, key=lambda network: (network.is_cut, not network.named))

    def choose(
        self, *, task: str | None, modality: str | None, subtasks: Sequence[str] = ()
    ) -> list[Chosen]:
        """Who answers a task, or every task of a modality: a network for each model that has some.

        Raises:
            UnknownNameError: there is no such task, modality or subtask.
            RequestError: the subtasks have nothing of what is asked.
        """
        if task is not None:
            return [self._choose(self.whole(task), (task,), subtasks=subtasks)]
        found = [name for name, of in self.tasks.items() if of.inputs.modality == modality]
        if not found:
            raise UnknownNameError("modality", str(modality), self.modalities)
        by_whole: dict[int, tuple[Network, list[str]]] = {}
        for name in found:
            whole = self.whole(name)
            by_whole.setdefault(id(whole), (whole, []))[1].append(name)
        groups = list(by_whole.values())
        able = [group for group in groups if set(subtasks) <= set(group[0].subtasks)]
        return [
            self._choose(whole, names, subtasks=subtasks) for whole, names in able or groups[:1]
        ]

    def _choose(self, whole: Network, tasks: Sequence[str], *, subtasks: Sequence[str]) -> Chosen:
        if not subtasks:
            return Chosen(whole, whole, tuple(tasks))
        subset = self.subset(whole, subtasks)
        kept = tuple(task for task in tasks if task in subset.tasks)
        if not kept:
            raise RequestError(
                422,
                "the subtasks have nothing of what is asked",
                value=f"subtasks {', '.join(subset.subtasks)}; asked {', '.join(tasks)}",
                remedy=f"their tasks are {', '.join(subset.tasks)}",
            )
        covering = [n for n in self.networks if n.root == whole.root and n.covers(subset)]
        smallest = min(covering, key=lambda network: network.num_parameters, default=whole)
        if smallest.num_parameters >= whole.num_parameters:
            can_cut = whole.cuts_in_memory and len(subset.subtasks) < len(whole.subtasks)
            return Chosen(whole, whole, kept, subset if can_cut else None)
        return Chosen(smallest, whole, kept)

    def subset(self, whole: Network, subtasks: Sequence[str]) -> Subset:
        """What these subtasks of a model are: of one without masks, its tasks.

        Raises:
            UnknownNameError: there is no such subtask.
        """
        if whole.pruner:
            return whole.pruner.subset(subtasks)
        for name in subtasks:
            if name not in whole.subtasks:
                raise UnknownNameError("subtask", name, whole.subtasks)
        chosen = tuple(name for name in whole.subtasks if name in subtasks)
        return Subset(chosen, tuple(whole.tasks) if whole.is_cut else chosen)

    def cut(self, whole: Network, subtasks: Sequence[str]) -> Network:
        """A model cut in memory to some of its subtasks; the last few cuts are kept."""
        predictor = whole.predictor.for_subtasks(subtasks)
        uri = f"{whole.uri} cut to {', '.join(subtasks)}"
        subset = self.subset(whole, subtasks)
        return Network(predictor, uri=uri, named=False, subset=subset, root=whole.root)

    def has_parts(self, whole: Network) -> bool:
        """Whether cuts or parts of a model are served beside it."""
        return any(one.root == whole.root and one is not whole for one in self.networks)

    def whole_of(self, network: Network) -> Network:
        """The model that a network is a part of, or itself."""
        alike = [one for one in self.networks if one.root == network.root]
        return max(alike, key=lambda one: one.num_parameters, default=network)


def find_sources(uris: Sequence[str], *, tracking_uri: str | None) -> list[ModelSource]:
    """The models named, opened and checked, and after them their registered cuts and parts.

    Raises:
        BundleError: there is no such bundle, or it changed.
        RegistryError: there is no such version, or the registry that was named is not reached.
    """
    sources: dict[str, ModelSource] = {}
    opened = [open_model(uri, tracking_uri=tracking_uri) for uri in uris]
    for model in opened:
        sources[model.uri] = ModelSource(model.uri, tracking_uri, named=True)
    for model in opened:
        for source in _registered_parts(model, tracking_uri=tracking_uri):
            sources.setdefault(source.uri, source)
    return list(sources.values())


def _registered_parts(model: Opened, *, tracking_uri: str | None) -> Iterable[ModelSource]:
    """Newest registered version of each cut and part of a model."""
    from mmtrain.store import models as model_registry  # imports MLflow: seconds

    registry = tracking_uri or model.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if registry is None:
        return ()
    try:
        found = model_registry.find_parts(model.bundle.digest, tracking_uri=registry)
    except model_registry.RegistryError as error:
        if tracking_uri:
            raise
        logger.warning("no registered cuts are served: %s", error)
        return ()
    newest = {
        (version.lineage.get("subset"), version.lineage.get("tasks")): ModelSource(
            f"models:/{version.name}/{version.version}", registry, named=False
        )
        for version in found
    }
    return newest.values()


def load_networks(sources: Iterable[ModelSource], *, device: str | None = None) -> Networks:
    """Loads all models of a server.

    Raises:
        BundleError: one is not where it was; a replica on another machine needs models:/... or a
            folder that all machines see.
    """
    networks = []
    for source in sources:
        uri = source.uri if source.uri.startswith("models:/") else find_bundle(Path(source.uri))
        predictor = Predictor.load(uri, device=device, tracking_uri=source.tracking_uri)
        networks.append(Network(predictor, uri=source.uri, named=source.named))
    return Networks(networks)
