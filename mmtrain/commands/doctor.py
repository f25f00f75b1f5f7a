"""`mmtrain doctor`: whether this machine, and what it is to talk to, can train."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mmtrain.commands.options import AsJson, console

COLORS = {"ok": "green", "warning": "yellow", "wrong": "bold red"}


def doctor(
    folder: Annotated[Path, typer.Option(help="Where runs and corpora are to be.")] = Path(),
    tracking: Annotated[
        str | None, typer.Option(help="MLflow URI; default: MLFLOW_TRACKING_URI.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="URI of storage that all machines see, e.g. s3://bucket/x.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster: its dashboard's URL, ray://HOST or 'auto'.")
    ] = None,
    min_free_gb: Annotated[float, typer.Option(min=0, help="Disk that a run needs, GB.")] = 5.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Longest wait, seconds.")] = 20.0,
    as_json: AsJson = False,
) -> None:
    """Examine this machine: each line is ok or has its remedy."""
    from mmtrain.doctor.examine import all_checks, examine, is_well
    from mmtrain.doctor.findings import Subject

    subject = Subject(
        folder=folder,
        tracking=tracking,
        storage=storage,
        address=address,
        min_free_bytes=int(min_free_gb * 1e9),
        timeout_s=timeout,
    )
    findings = examine(subject, all_checks())
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        table = Table(box=None, padding=(0, 2), show_header=False)
        for heading, folds in (("check", False), ("level", False), ("fact", True)):
            table.add_column(heading, no_wrap=not folds, overflow="fold")
        for finding in findings:
            remedy = f"\n[cyan]-> {escape(finding.remedy)}[/cyan]" if finding.remedy else ""
            color = COLORS[finding.level]
            level = f"[{color}]{finding.level}[/{color}]"
            table.add_row(finding.check, level, escape(finding.fact) + remedy)
        console.print(table)
    if not is_well(findings):
        raise typer.Exit(1)
