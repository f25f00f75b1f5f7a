"""What `mmtrain models` shows: models in a table, a version as a tree, two side by side."""

from collections.abc import Mapping, Sequence
from functools import partial

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mmtrain.commands.printing import table
from mmtrain.evaluate.metrics import load_metric
from mmtrain.registry.facts import VersionFacts, corpus_differences, recipe_differences
from mmtrain.registry.promotion import Measurement, shown
from mmtrain.registry.versions import Promoted
from mmtrain.store.models import ModelVersion
from mmtrain.store.versions import ListedModel, when

_table = partial(table, padding=1, header_style="dim")


def models_table(models: Sequence[ListedModel]) -> Table | str:
    """A line for each model."""
    lines = _table("model", "versions", "newest", "registered", "aliases", "tasks")
    for model in models:
        aliases = "\n".join(f"@{alias} {version}" for alias, version in model.aliases.items())
        tasks = model.tasks[0] if len(model.tasks) == 1 else f"{len(model.tasks)} tasks"
        lines.add_row(
            Text(model.name, "cyan"), str(model.num_versions), model.newest, model.created,
            Text(aliases), Text(tasks),
        )  # fmt: skip
    return lines if models else "no models yet; `mmtrain models register RUN` makes one"


def versions_table(versions: Sequence[ModelVersion]) -> Table:
    """A line for each version of a model."""
    lines = _table("version", "registered", "aliases", "step", "tasks", "part of")
    for one in versions:
        tags = one.lineage
        lines.add_row(
            Text(f"{one.name}/{one.version}", "cyan"), when(one.created_ms),
            Text("\n".join(f"@{alias}" for alias in one.aliases)), tags.get("step", ""),
            Text(tags.get("tasks", "").replace(",", "\n")),
            Text(tags.get("parent_version", tags.get("parent_digest", "")[:12])),
        )  # fmt: skip
    return lines


def version_tree(facts: VersionFacts) -> Tree:
    """All that leads back from a version."""
    lineage, run, parent = facts.card.lineage, facts.run, facts.card.lineage.parent
    top = Text(facts.version.fixed_uri, "bold cyan")
    if facts.version.aliases:
        top.append(f"  {', '.join('@' + alias for alias in facts.version.aliases)}", "green")
    tree = Tree(top)
    words = f"{run.run_id}, {run.name}, {run.status.lower()}, {run.started}" if run else ""
    _add(tree, "registered", facts.created)
    _add(tree, "run", words or "none that this MLflow knows")
    _add(tree, "recipe", f"{lineage.recipe}, digest {lineage.recipe_digest[:12]}")
    _add(tree, "trained", f"{lineage.step:,} steps, {lineage.seconds:,.0f} s")
    if lineage.init_from:
        _add(tree, "started from", lineage.init_from)
    _add(tree, "code", lineage.code_version)
    _add(tree, "corpora", below={task: digest[:12] for task, digest in lineage.corpora.items()})
    if parent:
        below = {"bundle": parent.digest[:12], "its tasks": ", ".join(parent.tasks)}
        words = parent.version or "a model that is not registered"
        _add(tree, "part of", words, below=below | lineage.facts)
    _add(tree, "size", f"{facts.card.num_parameters:,} parameters, {facts.num_bytes:,} bytes")
    digest = facts.version.lineage.get("bundle_digest", "")[:12]
    _add(tree, "files", f"LoggedModel {facts.version.model_id or 'none'}, bundle {digest}")
    tasks = facts.card.tasks.items()
    below = {name: f"{task.inputs.modality} to {task.targets.modality}" for name, task in tasks}
    _add(tree, "tasks", below=below)
    words = "trivial baseline in brackets" if facts.measurements else "no"
    _add(tree, "measured", words, below=_measured(facts.measurements))
    return tree


def comparison(first: VersionFacts, second: VersionFacts) -> list[Table | str]:
    """Two versions: metrics beside their baselines, size, tasks, and what their recipes change."""
    heads = [facts.version.fixed_uri.removeprefix("models:/") for facts in (first, second)]
    lines = _table("", *heads, "baseline", right=(*heads, "baseline"))
    both = set(first.card.tasks) & set(second.card.tasks)
    measured = [*first.measurements, *second.measurements]
    for key in dict.fromkeys((one.split, one.task, one.metric) for one in measured):
        if key[1] in both:
            lines.add_row(*_compared(key, first, second))
    lines.add_section()
    for (name, a), b in zip(_sizes(first).items(), _sizes(second).values(), strict=True):
        lines.add_row(name, Text(a), Text(b), "")
    parts: list[Table | str] = [lines]
    for one, other in ((first, second), (second, first)):
        if only := sorted(set(one.card.tasks) - set(other.card.tasks)):
            parts.append(f"only in {one.version.fixed_uri}: {', '.join(only)}")
    for task, (a, b) in corpus_differences(first, second).items():
        parts.append(f"other corpus of {task}: {a[:12]} -> {b[:12]}; compare it with care")
    if not (first.recipe and second.recipe):
        missing = (second if first.recipe else first).version.fixed_uri
        return [*parts, f"recipes not compared: the run of {missing} holds none"]
    changed = recipe_differences(first.recipe, second.recipe)
    parts.append("recipe:" if changed else "recipe: the same")
    return parts + [f"  {field}: {a} -> {b}" for field, (a, b) in changed.items()]


def promoted_lines(promoted: Promoted) -> list[str]:
    """Where an alias is now, and what the gate saw."""
    lines = [
        f"{text} is met: "
        + ", ".join(f"{one.name} is {shown(one.value, one.metric)}" for one in measurements)
        for text, measurements in promoted.fulfilled.items()
    ]
    before = f", it was version {promoted.before}" if promoted.before else ""
    name, alias = promoted.name, promoted.alias
    return [*lines, f"models:/{name}@{alias} is version {promoted.version}{before}"]


def _compared(key: tuple[str, str, str], first: VersionFacts, second: VersionFacts) -> list[Text]:
    """A row: the better of two values is bold."""
    split, task, metric = key
    pair = [
        next((m for m in facts.measurements if (m.split, m.task, m.metric) == key), None)
        for facts in (first, second)
    ]
    cells = [Text(shown(one.value, metric) if one else "-") for one in pair]
    values = [one.value for one in pair if one]
    if len(values) == 2 and values[0] != values[1]:
        better = max if load_metric(metric).higher_is_better else min
        cells[values.index(better(values))].stylize("bold")
    baselines = [one.baseline for one in pair if one and one.baseline is not None]
    name = f"{task}, {load_metric(metric).label}" + (f" ({split})" if split != "test" else "")
    return [Text(name), *cells, Text(shown(baselines[-1], metric) if baselines else "", "dim")]


def _sizes(facts: VersionFacts) -> dict[str, str]:
    lineage = facts.card.lineage
    parent = lineage.parent
    return {
        "parameters": f"{facts.card.num_parameters:,}",
        "bytes": f"{facts.num_bytes:,}",
        "tasks": str(len(facts.card.tasks)),
        "steps": f"{lineage.step:,}",
        "recipe": lineage.recipe,
        "code": lineage.code_version,
        "part of": (parent.version or parent.digest[:12]) if parent else "",
    }


def _measured(measurements: Sequence[Measurement]) -> dict[str, str]:
    """By task and split its metrics, the trivial baseline in brackets."""
    lines: dict[str, str] = {}
    for one in measurements:
        baseline = f" ({shown(one.baseline, one.metric)})" if one.baseline is not None else ""
        text = f"{load_metric(one.metric).label} {shown(one.value, one.metric)}{baseline}"
        name = one.task if one.split == "test" else f"{one.task}, {one.split}"
        lines[name] = f"{lines[name]}, {text}" if name in lines else text
    return lines


def _add(tree: Tree, name: str, text: str = "", *, below: Mapping[str, str] | None = None) -> None:
    branch = tree.add(Text.assemble((name, "dim"), "  " if text else "", text))
    for key, value in (below or {}).items():
        _add(branch, key, value)
