"""What commands print, for a person or as JSON. What is printed is `Any`, so that nothing heavy is
imported before it is needed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table


def table(*columns: str, padding: int = 2) -> Table:
    """A table without rules; what is too wide for the terminal goes on in the next line.

    Args:
        columns: their headings.
        padding: spaces beside a cell.
    """
    lines = Table(box=None, padding=(0, padding))
    for name in columns:
        lines.add_column(name, overflow="fold")
    return lines


def answer(data: Any, *parts: RenderableType, console: Console, as_json: bool) -> None:
    """Prints the data as JSON for a program, or the parts for a person, a line as it is."""
    if as_json:
        print(json.dumps(data, indent=1, default=str))
        return
    for part in parts:
        is_line = isinstance(part, str)
        console.print(part, highlight=False, markup=False, soft_wrap=is_line)


def print_exported(files: Sequence[Any], *, out: Path, console: Console, as_json: bool) -> None:
    """The bundle and graphs that were written."""
    lines = [
        f"{file.path}: {file.num_bytes:,} bytes, scores within {file.difference:.0e} of the model's"
        for file in files
    ]
    data = {"bundle": str(out / "bundle"), "graphs": [asdict(file) for file in files]}
    answer(data, f"bundle in {out / 'bundle'}", *lines, console=console, as_json=as_json)


def print_extracted(extracted: Any, *, version: Any, console: Console, as_json: bool) -> None:
    """An extracted model, and its version where it was registered."""
    lines = [
        f"{', '.join(extracted.tasks)}: {extracted.num_parameters:,} of "
        f"{extracted.parent_parameters:,} parameters, in {extracted.out}"
    ]
    data = extracted.to_dict()
    if version:
        data["version"] = version.fixed_uri
        lines.append(f"registered as {version.uri}, version {version.version}")
    if extracted.recipe:
        lines.append(f"next: mmtrain train --init-from {extracted.out}")
    answer(data, *lines, console=console, as_json=as_json)


def print_built(
    manifests: Mapping[tuple[str, str], Any], *, console: Console, as_json: bool
) -> None:
    """A line for each split that was built."""
    data, lines = [], table("task", "split", "examples", "quarantined", "digest")
    for (task, split), manifest in manifests.items():
        count, bad = manifest.num_examples, sum(manifest.quarantined.values())
        data.append(
            {"task": task, "split": split, "examples": count, "quarantined": bad,
             "digest": manifest.digest}
        )  # fmt: skip
        lines.add_row(task, split, f"{count:,}", str(bad), manifest.digest[:12])
    answer(data, lines, console=console, as_json=as_json)


def print_run(run: Any, *, console: Console, as_json: bool) -> None:
    """A run that has ended."""
    usual = run.data_dir == Path("corpora").absolute()
    data = "" if usual else f" --data {run.data_dir}"
    trained = f"trained {run.step} steps in {run.seconds:.0f} s; bundle in {run.bundle}"
    next_line = f"next: mmtrain evaluate {run.out}{data}"
    answer(run.to_dict(), trained, next_line, console=console, as_json=as_json)
