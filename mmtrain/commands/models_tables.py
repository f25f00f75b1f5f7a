"""What `mmtrain models` shows of versions beside MLflow's own page: tables of names and values."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from mmtrain.commands.printing import table
from mmtrain.registry.facts import VersionFacts, corpus_differences, recipe_differences
from mmtrain.registry.promotion import label, shown
from mmtrain.registry.versions import Promoted
from mmtrain.store.models import ModelVersion
from mmtrain.store.versions import when


def model_row(versions: Sequence[ModelVersion]) -> dict[str, object]:
    """A registered model, from its versions, the newest first."""
    newest = versions[0]
    return {
        "name": newest.name,
        "num_versions": len(versions),
        "newest": newest.version,
        "aliases": {alias: one.version for one in versions for alias in one.aliases},
        "tasks": newest.lineage.get("tasks", "").split(","),
        "created": when(newest.created_ms),
    }


def version_row(version: ModelVersion) -> dict[str, object]:
    """A version with its tags."""
    return {
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "created": when(version.created_ms),
        **version.lineage,
    }


def rows_table(rows: Sequence[Mapping[str, object]], *, columns: Mapping[str, str]) -> Table:
    """A line for each row, of the columns by heading that are named."""
    lines = table(*columns, padding=1)
    for row in rows:
        lines.add_row(*(_text(row.get(name, "")) for name in columns.values()))
    return lines


def version_table(facts: VersionFacts) -> Table:
    """All that leads back from a version."""
    lines = table("", facts.version.fixed_uri, padding=1)
    for name, text in _described(facts).items():
        lines.add_row(name, text)
    return lines


def comparison(first: VersionFacts, second: VersionFacts) -> list[Table | str]:
    """Two versions: metrics beside their baselines, size, tasks, and what their recipes change."""
    uris = first.version.fixed_uri, second.version.fixed_uri
    lines, (a, b) = table("", *uris, padding=1), (_described(first), _described(second))
    for name in dict.fromkeys([*a, *b]):
        lines.add_row(name, a.get(name, "-"), b.get(name, "-"))
    parts: list[Table | str] = [lines]
    for task in corpus_differences(first, second):
        parts.append(f"{task} was learned from another corpus; compare it with care")
    if not (first.recipe and second.recipe):
        return [*parts, f"recipes not compared: the run of {uris[bool(first.recipe)]} holds none"]
    changed = recipe_differences(first.recipe, second.recipe)
    parts.append("recipe:" if changed else "recipe: the same")
    return parts + [f"  {field}: {one} -> {other}" for field, (one, other) in changed.items()]


def promoted_lines(promoted: Promoted) -> list[str]:
    """Where an alias is now, and what the gate saw."""
    lines: list[str] = []
    for text, measurements in promoted.fulfilled.items():
        values = (f"{one.name} is {shown(one.value, one.metric)}" for one in measurements)
        lines.append(f"{text} is met: {', '.join(values)}")
    before = f", it was version {promoted.before}" if promoted.before else ""
    moved = f"models:/{promoted.name}@{promoted.alias} is version {promoted.version}"
    return [*lines, moved + before]


def _described(facts: VersionFacts) -> dict[str, str]:
    """What a person reads of a version, by name; a trivial baseline is in brackets."""
    lineage, run, parent = facts.card.lineage, facts.run, facts.card.lineage.parent
    measured: dict[str, str] = {}
    for one in facts.measurements:
        name = f"{one.task}, {label(one.metric)}"
        baseline = f" ({shown(one.baseline, one.metric)})" if one.baseline is not None else ""
        split = "" if one.split == "test" else f" ({one.split})"
        measured[name + split] = shown(one.value, one.metric) + baseline
    described = {
        **measured,
        "aliases": _text(facts.version.aliases),
        "registered": facts.created,
        "run": f"{run.run_id}, {run.name}, {run.status.lower()}" if run else "not in this MLflow",
        "recipe": f"{lineage.recipe}, digest {lineage.recipe_digest[:12]}",
        "trained": f"{lineage.step:,} steps, {lineage.seconds:,.0f} s",
        "started from": lineage.init_from or "",
        "code": lineage.code_version,
        "part of": (parent.version or parent.digest[:12]) if parent else "",
        **lineage.facts,
        "parameters": f"{facts.card.num_parameters:,}",
        "bytes": f"{facts.num_bytes:,}",
        "bundle": facts.version.lineage.get("bundle_digest", "")[:12],
        "LoggedModel": facts.version.model_id or "",
    }
    for name, task in facts.card.tasks.items():
        corpus = f", corpus {lineage.corpora[name][:12]}" if name in lineage.corpora else ""
        described[name] = f"{task.inputs.modality} to {task.targets.modality}{corpus}"
    return {name: text for name, text in described.items() if text}


def _text(value: object) -> str:
    """A cell: what a mapping or a sequence holds, a line each."""
    if isinstance(value, Mapping):
        return "\n".join(f"{name} {one}" for name, one in value.items())
    return "\n".join(value) if isinstance(value, list | tuple) else str(value)
