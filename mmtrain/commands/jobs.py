"""`mmtrain submit` and `mmtrain jobs list | logs | stop`: commands on a Ray cluster."""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.table import Table

from mmtrain.commands.options import AsJson, console, errors

if TYPE_CHECKING:
    from mmtrain.jobs.client import Cluster

JobsAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Dashboard of the cluster, e.g. http://HOST:8265; default: RAY_ADDRESS, or the one "
        "on this machine.",
    ),
]
JobName = Annotated[str, typer.Argument(help="Job or run, as `jobs list` shows it.")]

jobs = typer.Typer(help="Jobs on a Ray cluster: list, logs, stop.", no_args_is_help=True)


def submit(
    context: typer.Context,
    arguments: Annotated[
        list[str], typer.Argument(help="Command and its options, e.g. train quickstart.")
    ],
    address: JobsAddress = None,
    root: Annotated[
        str | None,
        typer.Option(
            envvar="MMTRAIN_ROOT",
            help="Folder on the cluster that relative paths begin at; default: this one.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Show the log until the job ends.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Run a command on a Ray cluster; once more goes on with it."""
    from mmtrain.jobs.client import Cluster
    from mmtrain.jobs.submission import read_submission

    commands = getattr(context.find_root().command, "commands", {})
    submission = read_submission(arguments, root=root or str(Path.cwd()), commands=commands)
    cluster = Cluster(address)
    decision = cluster.submit(submission)
    message = {
        "start": f"submitted {decision.id} to {cluster.address}",
        "attach": f"{decision.id} is under way on {cluster.address}; nothing new was started",
        "done": f"{decision.id} has ended well; nothing new was started. For another run: --out",
    }[decision.act]
    errors.print(message, highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps({"id": decision.id, "run": submission.run, "act": decision.act}))
    if follow and decision.act != "done":
        _follow(cluster, decision.id, to=sys.stderr if as_json else sys.stdout)


@jobs.command("list")
def list_jobs(address: JobsAddress = None, as_json: AsJson = False) -> None:
    """List the cluster's jobs, the newest first."""
    from mmtrain.jobs.client import Cluster

    lines = Cluster(address).jobs()
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
        return
    if not lines:
        errors.print("no jobs yet; submit one with `mmtrain submit -- train quickstart`")
        return
    table = Table(box=None, padding=(0, 1), pad_edge=False, expand=True)
    widest = max(len(line.id) for line in lines)
    for heading, width in (("job", widest), ("status", 9), ("started, UTC", 12), ("s", 6)):
        table.add_column(heading, no_wrap=True, width=width)
    table.add_column("command", no_wrap=True, overflow="ellipsis", ratio=1)
    for line in lines:
        started = datetime.fromtimestamp(line.started, UTC) if line.started else None
        table.add_row(
            line.id, line.status.lower(), f"{started:%m-%d %H:%M}" if started else "-",
            f"{line.seconds:.0f}", line.command,
        )  # fmt: skip
    console.print(table, markup=False, highlight=False)


@jobs.command("logs")
def logs(
    job: JobName,
    address: JobsAddress = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the job ends; exits with its status.")
    ] = False,
) -> None:
    """Print what a job has printed."""
    from mmtrain.jobs.client import Cluster

    cluster = Cluster(address)
    job_id = cluster.find(job)
    if follow:
        _follow(cluster, job_id, to=sys.stdout)
    else:
        print(cluster.logs(job_id), end="")


@jobs.command("stop")
def stop(job: JobName, address: JobsAddress = None) -> None:
    """Stop a job; submitting the same command again goes on from what it saved."""
    from mmtrain.jobs.client import Cluster

    cluster = Cluster(address)
    line = cluster.stop(cluster.find(job))
    console.print(f"{line.id} {line.status.lower()}", highlight=False, soft_wrap=True)


def _follow(cluster: "Cluster", job_id: str, *, to: TextIO) -> None:
    """Shows the job's log to its end and exits as it did; Ctrl-C leaves it running."""
    from mmtrain.jobs.client import exit_code

    try:
        end = cluster.follow(job_id, write=lambda text: print(text, end="", file=to, flush=True))
    except KeyboardInterrupt:
        errors.print(
            f"{job_id} goes on. Come back: mmtrain jobs logs --follow {job_id}; "
            f"end it: mmtrain jobs stop {job_id}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    errors.print(f"{job_id} {end.status.lower()}", highlight=False, soft_wrap=True)
    if code := exit_code(end):
        raise typer.Exit(code)
