"""What commands print, for a person or as JSON. What is printed is `Any`, so that nothing heavy is
imported before it is needed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_exported(files: Sequence[Any], *, out: Path, console: Console, as_json: bool) -> None:
    """The bundle and graphs that were written."""
    if as_json:
        graphs = [asdict(file) for file in files]
        print(json.dumps({"bundle": out / "bundle", "graphs": graphs}, indent=1, default=str))
        return
    console.print(f"bundle in {out / 'bundle'}", highlight=False)
    for file in files:
        line = f"{file.path}: {file.num_bytes:,} bytes"
        line += f", scores within {file.difference:.0e} of the model's"
        console.print(line, highlight=False, soft_wrap=True)


def print_extracted(extracted: Any, *, version: Any, console: Console, as_json: bool) -> None:
    """An extracted model, and its version where it was registered."""
    if as_json:
        registered = {"version": f"models:/{version.name}/{version.version}"} if version else {}
        print(json.dumps(extracted.to_dict() | registered, indent=1, default=str))
        return
    console.print(
        f"{', '.join(extracted.tasks)}: {extracted.num_parameters:,} of "
        f"{extracted.parent_parameters:,} parameters, in {extracted.out}",
        highlight=False,
    )
    if version:
        console.print(f"registered as {version.uri}, version {version.version}", highlight=False)
    if extracted.recipe:
        console.print(f"next: mmtrain train --init-from {extracted.out}", highlight=False)


def print_built(
    manifests: Mapping[tuple[str, str], Any], *, console: Console, as_json: bool
) -> None:
    """A line for each split that was built."""
    if as_json:
        print(
            json.dumps(
                [
                    {"task": task, "split": split, "examples": manifest.num_examples,
                     "quarantined": sum(manifest.quarantined.values()), "digest": manifest.digest}
                    for (task, split), manifest in manifests.items()
                ],
                indent=1,
            )
        )  # fmt: skip
        return
    table = Table(box=None, padding=(0, 2))
    for heading in ("task", "split", "examples", "quarantined", "digest"):
        table.add_column(heading, no_wrap=True, overflow="fold")
    for (task, split), manifest in manifests.items():
        table.add_row(
            task, split, f"{manifest.num_examples:,}", str(sum(manifest.quarantined.values())),
            manifest.digest[:12],
        )  # fmt: skip
    console.print(table)


def print_run(run: Any, *, console: Console, as_json: bool) -> None:
    """A run that has ended."""
    if as_json:
        print(json.dumps(run.to_dict(), indent=1))
        return
    console.print(f"trained {run.step} steps in {run.seconds:.0f} s; bundle in {run.bundle}")
    usual = run.data_dir == Path("corpora").absolute()
    data = "" if usual else f" --data {run.data_dir}"
    line = f"next: mmtrain evaluate {run.out}{data}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
