"""Jobs on a real cluster with token authentication, over the command line alone."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from mmtrain.cli import app
from mmtrain.jobs.submission import read_submission
from tests.integration.token_cluster import TokenCluster, token_cluster
from tests.waiting import BUSY_S, wait_until

BUILD = ("build", "debug", "--task", "image_classification")
TRAIN = ("train", "debug", "--task", "image_classification")
SHORT = (*TRAIN, "--set", "num_steps=2", "--set", "validate_every=2")
ENDLESS = (*TRAIN, "--out", "runs/endless", "--set", "num_steps=100000")


@pytest.fixture(scope="module")
def cluster() -> Iterator[TokenCluster]:
    with (
        # short: the whole name of a socket below it has 107 characters at most
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder,
        token_cluster(Path(folder), node_cpus=3) as started,
    ):
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def submitted(cluster, folder) -> list[subprocess.CompletedProcess[str]]:
    """Corpora built, then a short run trained, both as jobs."""
    return [cluster.run("submit", "--", *arguments, folder=folder) for arguments in (BUILD, SHORT)]


def name_of(arguments: tuple[str, ...], folder: Path) -> str:
    return read_submission(
        arguments, root=str(folder), commands=typer.main.get_command(app).commands
    ).run


def listed(cluster: TokenCluster, folder: Path) -> dict[str, dict[str, str]]:
    lines = json.loads(cluster.run("jobs", "list", "--json", folder=folder).stdout)
    return {line["id"]: line for line in lines}


def test_a_submitted_run_shows_its_log_and_leaves_its_bundle(submitted, folder):
    built, trained = submitted
    assert built.returncode == 0, built.stderr
    assert "1,347" in built.stdout
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "trained 2 steps" in trained.stdout
    assert (folder / "runs" / "debug" / "bundle" / "bundle.json").exists()


def test_what_has_ended_well_is_not_started_again(submitted, cluster, folder):
    again = cluster.run("submit", "--", *SHORT, folder=folder)
    assert again.returncode == 0
    assert "has ended well; nothing new was started" in again.stderr
    assert f"{name_of(SHORT, folder)}-2" not in listed(cluster, folder)


def test_a_failing_command_gives_its_message_and_exit_status(submitted, cluster, folder):
    failing = (*TRAIN, "--out", "runs/failing", "--data", "nowhere")
    ended = cluster.run("submit", "--", *failing, folder=folder)
    assert ended.returncode == 2
    assert "error: " in ended.stdout
    assert "Traceback" not in ended.stdout
    assert listed(cluster, folder)[name_of(failing, folder)]["status"] == "FAILED"


def test_a_folder_that_the_cluster_lacks_is_one_line_and_exit_status_2(cluster, folder):
    ended = cluster.run("submit", "--root", "/nowhere", "--", *BUILD, folder=folder)
    assert ended.returncode == 2
    assert "error: the cluster has no folder /nowhere; give --root DIR" in ended.stdout


def test_a_run_outlives_its_client_is_attached_to_stopped_and_goes_on(submitted, cluster, folder):
    name = name_of(ENDLESS, folder)
    client = subprocess.Popen(
        [sys.executable, "-m", "mmtrain", "submit", "--", *ENDLESS],
        cwd=folder, env=dict(cluster.environment), stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(
            lambda: listed(cluster, folder).get(name, {}).get("status") == "RUNNING", every_s=1
        )
        client.send_signal(signal.SIGINT)
        assert client.wait(timeout=BUSY_S) == 130
        assert client.stderr is not None
        assert f"{name} goes on. Come back: mmtrain jobs logs --follow" in client.stderr.read()
    finally:
        client.kill()

    attached = cluster.run("submit", "--no-follow", "--json", "--", *ENDLESS, folder=folder)
    assert json.loads(attached.stdout) == {"id": name, "run": name, "act": "attach"}

    other = cluster.run("submit", "--", *ENDLESS, "--set", "seed=7", folder=folder)
    assert other.returncode == 2
    assert "is running with other arguments or files" in other.stderr

    stopped = cluster.run("jobs", "stop", name, folder=folder)
    assert stopped.stdout == f"{name} stopped\n"

    again = cluster.run("submit", "--no-follow", "--json", "--", *ENDLESS, folder=folder)
    assert json.loads(again.stdout) == {"id": f"{name}-2", "run": name, "act": "start"}
    followed = subprocess.Popen(
        [sys.executable, "-m", "mmtrain", "jobs", "logs", "--follow", name],
        cwd=folder, env=dict(cluster.environment), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert cluster.run("jobs", "stop", name, folder=folder).stdout == f"{name}-2 stopped\n"
    log, _ = followed.communicate(timeout=BUSY_S)
    assert followed.returncode != 0
    assert "--resume" in log


def test_logs_of_an_unknown_job_name_the_nearest(submitted, cluster, folder):
    asked = cluster.run("jobs", "logs", "train-debug-0", folder=folder)
    assert asked.returncode == 2
    assert "no job 'train-debug-0'; nearest: train-debug-" in asked.stderr


@pytest.mark.parametrize(
    ("mode", "token", "said"),
    [
        ("token", "ab" * 32, "refuses the token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
        ("disabled", "", "wants a token and got none; set RAY_AUTH_MODE=token"),
    ],
)
def test_without_the_right_token_nothing_is_told(cluster, folder, mode, token, said):
    refused = cluster.run("jobs", "list", folder=folder, RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN=token)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stdout == ""


def test_the_token_may_lie_in_a_file(cluster, folder):
    path = folder / "token"
    path.write_text(cluster.environment["RAY_AUTH_TOKEN"])
    environment = {name: v for name, v in cluster.environment.items() if name != "RAY_AUTH_TOKEN"}
    reader = TokenCluster(cluster.address, {**environment, "RAY_AUTH_TOKEN_PATH": os.fspath(path)})
    assert reader.run("jobs", "list", "--json", folder=folder).returncode == 0
