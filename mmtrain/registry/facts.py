"""What is known of a registered version, read from MLflow and from its card: plain values."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mmtrain.bundle import Card
from mmtrain.registry.promotion import Measurement, to_measurements
from mmtrain.store.models import ModelVersion, read_card, read_recipe
from mmtrain.store.tracking import flatten
from mmtrain.store.versions import TrackedRun, find_run, find_version, model_metrics, when
from pipelines.errors import UnknownNameError

_LINEAGE = {"corpora", "code_version", "init_from", "parent", "step", "facts"}  # as JSON shows it


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """All that leads back from a version.

    Args:
        version: its name, number, aliases and tags.
        run: the run that it belongs to; None where MLflow has it no more.
        card: of its bundle: tasks, size, lineage.
        measurements: what was measured of it.
        recipe: its run's recipe as dotted fields; empty where that is not to be had.
    """

    version: ModelVersion
    run: TrackedRun | None
    card: Card
    measurements: tuple[Measurement, ...]
    recipe: Mapping[str, str]

    @property
    def created(self) -> str:
        """When it was registered, in UTC."""
        return when(self.version.created_ms)

    @property
    def num_bytes(self) -> int:
        """Size of the bundle's files."""
        return sum(file.num_bytes for file in self.card.files.values())

    def to_dict(self) -> dict[str, object]:
        """As `mmtrain models show --json` prints it."""
        lineage = self.card.lineage
        run = asdict(self.run) if self.run else None
        return {
            "uri": self.version.fixed_uri,
            "aliases": list(self.version.aliases),
            "created": self.created,
            "model_id": self.version.model_id,
            "run": run and {name: value for name, value in run.items() if name != "metrics"},
            "recipe": {"name": lineage.recipe, "digest": lineage.recipe_digest},
            **lineage.model_dump(include=_LINEAGE),
            "tasks": {
                name: [task.inputs.modality, task.targets.modality]
                for name, task in self.card.tasks.items()
            },
            "num_parameters": self.card.num_parameters,
            "num_bytes": self.num_bytes,
            "bundle_digest": self.version.lineage.get("bundle_digest"),
            "measurements": [asdict(one) for one in self.measurements],
        }


def read_version(spec: str, *, tracking_uri: str) -> VersionFacts:
    """All that is known of a version.

    Args:
        spec: NAME (its newest version), NAME/3 or NAME@ALIAS, with or without `models:/`.
        tracking_uri: MLflow's URI.

    Raises:
        RegistryError: MLflow cannot be reached, or the version holds no bundle of ours.
        UnknownNameError: no such model, version or alias; names the nearest.
        BundleError: its card is damaged.
    """
    version = find_version(spec, tracking_uri=tracking_uri)
    card = read_card(version, tracking_uri=tracking_uri)
    run_id = card.lineage.run_id or version.run_id
    run = find_run(run_id, tracking_uri=tracking_uri) if run_id else None
    recipe_json = read_recipe(run.run_id, tracking_uri=tracking_uri) if run else None
    recipe = json.loads(recipe_json) if recipe_json else None
    return VersionFacts(
        version=version,
        run=run,
        card=card,
        measurements=_measurements(version, run=run, card=card, tracking_uri=tracking_uri),
        recipe=flatten(recipe) if isinstance(recipe, dict) else {},
    )


def _measurements(
    version: ModelVersion, *, run: TrackedRun | None, card: Card, tracking_uri: str
) -> tuple[Measurement, ...]:
    """What was measured of the LoggedModel; else of what answers the same: the run that trained the
    model, or the version that it was taken out of without a change (the lineage of a cut one has
    facts).
    """
    if version.model_id:
        metrics = model_metrics(version.model_id, tracking_uri=tracking_uri)
        if measured := to_measurements(metrics):
            return tuple(measured)
    parent = card.lineage.parent
    if card.lineage.facts:
        return ()
    if parent and parent.version:
        try:
            whole = read_version(parent.version, tracking_uri=tracking_uri).measurements
        except UnknownNameError:  # deleted since
            return ()
    else:
        whole = to_measurements(run.metrics) if run else ()
    return tuple(one for one in whole if one.task in card.tasks)


def recipe_differences(
    first: Mapping[str, str], second: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Dotted fields that two recipes do not share, with both values; "-" where there is none."""
    if not (first and second):
        return {}
    return {
        field: (first.get(field, "-"), second.get(field, "-"))
        for field in dict.fromkeys([*first, *second])
        if first.get(field) != second.get(field)
    }


def corpus_differences(first: VersionFacts, second: VersionFacts) -> dict[str, tuple[str, str]]:
    """Tasks of both that were trained on other corpora, with the digests."""
    a, b = first.card.lineage.corpora, second.card.lineage.corpora
    return {task: (a[task], b[task]) for task in a if task in b and a[task] != b[task]}
