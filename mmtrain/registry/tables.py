"""What `mmtrain models` prints: models in a table, a version as a tree, two side by side."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mmtrain.evaluate.metrics import SHIPPED
from mmtrain.registry.facts import ListedModel, Promoted, VersionFacts
from mmtrain.registry.promotion import Measurement, shown

if TYPE_CHECKING:
    from mmtrain.store.models import ModelVersion


def print_models(models: Sequence[ListedModel], *, console: Console, as_json: bool) -> None:
    """A line for each model."""
    if as_json:
        print(json.dumps([model.to_dict() for model in models], indent=1))
        return
    table = _table("model", "versions", "newest", "registered", "aliases", "tasks")
    for model in models:
        aliases = "\n".join(f"@{alias} {version}" for alias, version in model.aliases.items())
        tasks = model.tasks[0] if len(model.tasks) == 1 else f"{len(model.tasks)} tasks"
        table.add_row(
            Text(model.name, style="cyan"), str(model.num_versions), model.newest, model.created,
            Text(aliases), Text(tasks),
        )  # fmt: skip
    console.print(table if models else "no models yet; `mmtrain models register RUN` makes one")


def print_versions(
    versions: Sequence[tuple["ModelVersion", str]], *, console: Console, as_json: bool
) -> None:
    """A line for each version of a model."""
    if as_json:
        held = [
            {"name": one.name, "version": one.version, "aliases": list(one.aliases),
             "created": created, **one.lineage}
            for one, created in versions
        ]  # fmt: skip
        print(json.dumps(held, indent=1))
        return
    table = _table("version", "registered", "aliases", "step", "tasks", "part of")
    for one, created in versions:
        parent = one.lineage.get("parent_version", one.lineage.get("parent_digest", "")[:12])
        table.add_row(
            Text(f"{one.name}/{one.version}", style="cyan"), created,
            Text("\n".join(f"@{alias}" for alias in one.aliases)), one.lineage.get("step", ""),
            Text(one.lineage.get("tasks", "").replace(",", "\n")), Text(parent),
        )  # fmt: skip
    console.print(table)


def print_version(facts: VersionFacts, *, console: Console, as_json: bool) -> None:
    """All that leads back from a version, as a tree."""
    if as_json:
        print(json.dumps(facts.to_dict(), indent=1))
        return
    lineage = facts.card.lineage
    top = Text(facts.uri, style="bold cyan")
    if facts.version.aliases:
        top.append(f"  {', '.join('@' + alias for alias in facts.version.aliases)}", "green")
    tree = Tree(top)
    tree.add(_line("registered", facts.created))
    tree.add(_line("run", _run_words(facts)))
    tree.add(_line("recipe", f"{lineage.recipe}, digest {lineage.recipe_digest[:12]}"))
    tree.add(_line("trained", f"{lineage.step:,} steps, {lineage.seconds:,.0f} s"))
    if lineage.init_from:
        tree.add(_line("started from", lineage.init_from))
    tree.add(_line("code", lineage.code_version))
    corpora = tree.add(_line("corpora", ""))
    for task, digest in lineage.corpora.items():
        corpora.add(_line(task, digest[:12]))
    _add_parent(tree, facts)
    tree.add(_line("size", f"{facts.card.num_parameters:,} parameters, {facts.num_bytes:,} bytes"))
    digest = facts.version.lineage.get("bundle_digest", "")[:12]
    tree.add(_line("files", f"LoggedModel {facts.model_id or 'none'}, bundle {digest}"))
    tasks = tree.add(_line("tasks", ""))
    for name, task in facts.card.tasks.items():
        tasks.add(_line(name, f"{task.inputs.modality} to {task.targets.modality}"))
    _add_measured(tree, facts.measurements)
    console.print(tree, highlight=False)


def print_comparison(
    first: VersionFacts, second: VersionFacts, *, console: Console, as_json: bool
) -> None:
    """Two versions: metrics beside their baselines, size, tasks, and what their recipes change."""
    changed = recipe_differences(first.recipe, second.recipe)
    corpora = corpus_differences(first, second)
    if as_json:
        held = {"versions": [first.to_dict(), second.to_dict()], "recipe": changed}
        print(json.dumps({**held, "corpora": corpora}, indent=1))
        return
    heads = [facts.uri.removeprefix("models:/") for facts in (first, second)]
    table = _table("", *heads, "baseline", right=(1, 2, 3))
    both = set(first.card.tasks) & set(second.card.tasks)
    measured = [*first.measurements, *second.measurements]
    for key in dict.fromkeys((one.split, one.task, one.metric) for one in measured):
        if key[1] in both:
            table.add_row(*_compared(key, first, second))
    table.add_section()
    for name, a, b in _sizes(first, second):
        table.add_row(Text(name), Text(a), Text(b), "")
    console.print(table)
    only = [(one, sorted(set(one.card.tasks) - set(other.card.tasks)))
            for one, other in ((first, second), (second, first))]  # fmt: skip
    for one, tasks in only:
        if tasks:
            _print(console, f"only in {one.uri}: {', '.join(tasks)}")
    for task, (a, b) in corpora.items():
        _print(console, f"other corpus of {task}: {a[:12]} -> {b[:12]}; compare it with care")
    if not (first.recipe and second.recipe):
        missing = second if first.recipe else first
        _print(console, f"recipes not compared: the run of {missing.uri} holds none")
        return
    _print(console, "recipe:" if changed else "recipe: the same")
    for field, (a, b) in changed.items():
        _print(console, f"  {field}: {a} -> {b}")


def print_promoted(promoted: Promoted, *, console: Console, as_json: bool) -> None:
    """Where an alias is now, and what the gate saw."""
    if as_json:
        print(json.dumps(promoted.to_dict(), indent=1))
        return
    for text, found in promoted.fulfilled.items():
        seen = ", ".join(f"{one.name} is {shown(one.value, one.metric)}" for one in found)
        _print(console, f"{text} is met: {seen}")
    before = f", it was version {promoted.before}" if promoted.before else ""
    _print(
        console,
        f"models:/{promoted.name}@{promoted.alias} is version {promoted.version}{before}",
    )


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


def _compared(
    key: tuple[str, str, str], first: VersionFacts, second: VersionFacts
) -> tuple[Text, Text, Text, Text]:
    """A row: the better of two values is bold."""
    split, task, metric = key
    cells, values = [], []
    baseline = None
    for facts in (first, second):
        found = [one for one in facts.measurements if (one.split, one.task, one.metric) == key]
        values.append(found[0].value if found else None)
        cells.append(Text(shown(found[0].value, metric) if found else "-"))
        baseline = found[0].baseline if found and found[0].baseline is not None else baseline
    known = SHIPPED.get(metric)  # of a user's own metric its name alone was kept
    if known and None not in values and values[0] != values[1]:
        pick = max if known.higher_is_better else min
        cells[values.index(pick(value for value in values if value is not None))].stylize("bold")
    label = known.label if known else metric
    name = f"{task}, {label}" + (f" ({split})" if split != "test" else "")
    return Text(name), *cells, Text(shown(baseline, metric) if baseline is not None else "", "dim")


def _sizes(first: VersionFacts, second: VersionFacts) -> list[tuple[str, str, str]]:
    both = (first, second)
    rows = {
        "parameters": [f"{one.card.num_parameters:,}" for one in both],
        "bytes": [f"{one.num_bytes:,}" for one in both],
        "tasks": [str(len(one.card.tasks)) for one in both],
        "steps": [f"{one.card.lineage.step:,}" for one in both],
        "recipe": [one.card.lineage.recipe for one in both],
        "code": [one.card.lineage.code_version for one in both],
        "part of": [_parent_words(one) for one in both],
    }
    return [(name, a, b) for name, (a, b) in rows.items()]


def _add_measured(tree: Tree, measurements: Sequence[Measurement]) -> None:
    """A line for each task and split: its metrics, the trivial baseline in brackets."""
    branch = tree.add(_line("measured", "trivial baseline in brackets" if measurements else "no"))
    lines: dict[str, list[str]] = {}
    for one in measurements:
        baseline = f" ({shown(one.baseline, one.metric)})" if one.baseline is not None else ""
        label = SHIPPED[one.metric].label if one.metric in SHIPPED else one.metric
        said = f"{label} {shown(one.value, one.metric)}{baseline}"
        split = "" if one.split == "test" else f", {one.split}"
        lines.setdefault(f"{one.task}{split}", []).append(said)
    for task, said in lines.items():
        branch.add(_line(task, ", ".join(said)))


def _run_words(facts: VersionFacts) -> str:
    if facts.run is None:
        return "none that this MLflow knows"
    return f"{facts.run.run_id}, {facts.run.name}, {facts.run.status.lower()}, {facts.run.started}"


def _parent_words(facts: VersionFacts) -> str:
    parent = facts.card.lineage.parent
    return "" if parent is None else parent.version or parent.digest[:12]


def _add_parent(tree: Tree, facts: VersionFacts) -> None:
    parent = facts.card.lineage.parent
    if parent is None:
        return
    branch = tree.add(_line("part of", parent.version or "a model that is not registered"))
    branch.add(_line("bundle", parent.digest[:12]))
    branch.add(_line("its tasks", ", ".join(parent.tasks)))
    for name, value in facts.card.lineage.facts.items():
        branch.add(_line(name, value))


def _line(name: str, value: str) -> Text:
    return Text.assemble((name, "dim"), "  " if value else "", value)


def _table(*columns: str, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for place, name in enumerate(columns):
        justify = "right" if place in right else "left"
        table.add_column(name, justify=justify, no_wrap=True, overflow="fold")
    return table


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
