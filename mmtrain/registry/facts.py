"""What is known of registered models and their versions: plain values, as they are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mmtrain.bundle import Card
from mmtrain.registry.promotion import Measurement

if TYPE_CHECKING:
    from mmtrain.store.models import ModelVersion


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A registered model. `aliases` are versions by alias, `tasks` those of the newest version."""

    name: str
    num_versions: int
    newest: str
    aliases: Mapping[str, str]
    tasks: tuple[str, ...]
    created: str

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The run that a version came from."""

    run_id: str
    name: str
    status: str
    started: str
    experiment_id: str


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """All that leads back from a version.

    Args:
        version: its name, number, aliases and tags.
        created: when it was registered.
        model_id: its LoggedModel; None: it was registered without one.
        run: the run that it belongs to; None where MLflow has it no more.
        card: of its bundle: tasks, size, lineage.
        measurements: what was measured of it.
        recipe: its run's recipe as dotted fields; empty where that is not to be had.
    """

    version: "ModelVersion"
    created: str
    model_id: str | None
    run: RunFacts | None
    card: Card
    measurements: tuple[Measurement, ...]
    recipe: Mapping[str, str]

    @property
    def uri(self) -> str:
        """models:/NAME/VERSION."""
        return f"models:/{self.version.name}/{self.version.version}"

    @property
    def num_bytes(self) -> int:
        """Size of the bundle's files."""
        return sum(file.num_bytes for file in self.card.files.values())

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        lineage = self.card.lineage
        return {
            "uri": self.uri,
            "aliases": list(self.version.aliases),
            "created": self.created,
            "model_id": self.model_id,
            "run": asdict(self.run) if self.run else None,
            "recipe": {"name": lineage.recipe, "digest": lineage.recipe_digest},
            "corpora": lineage.corpora,
            "code_version": lineage.code_version,
            "init_from": lineage.init_from,
            "parent": lineage.parent.model_dump() if lineage.parent else None,
            "step": lineage.step,
            "facts": lineage.facts,
            "tasks": {
                name: [task.inputs.modality, task.targets.modality]
                for name, task in self.card.tasks.items()
            },
            "num_parameters": self.card.num_parameters,
            "num_bytes": self.num_bytes,
            "bundle_digest": self.version.lineage.get("bundle_digest"),
            "measurements": [one.to_dict() for one in self.measurements],
        }


@dataclass(frozen=True, slots=True)
class Promoted:
    """An alias that was moved: from which version, to which, and what the gate saw."""

    name: str
    version: str
    alias: str
    before: str | None
    fulfilled: Mapping[str, Sequence[Measurement]]

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        seen = {text: [one.to_dict() for one in found] for text, found in self.fulfilled.items()}
        return {**asdict(self), "fulfilled": seen}
