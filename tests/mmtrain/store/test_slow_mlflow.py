"""An MLflow that answers a byte a second: training goes on, its journal is free, nothing doubles.

Such a server passes every limit on a read; what is bounded here is the request.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mmtrain.jobs import client as jobs
from mmtrain.jobs.submission import JobError
from mmtrain.registry.register import register
from mmtrain.store import models as model_registry
from mmtrain.store.config import TrackingConfig
from mmtrain.store.journal import Journal
from mmtrain.store.models import RegistryError
from mmtrain.store.tracking import Tracker
from mmtrain.store.versions import list_versions
from tests.mmtrain.example_bundle import example_bundle
from tests.mmtrain.example_mlflow import Server, Trickle, trickling

OPEN_S, CLOSE_S, REQUEST_S = 1.0, 1.0, 2
SLACK_S = 3.0  # a busy machine's, over each bound
STEPS_S = 1.0  # 500 steps of metrics
CONFIG = TrackingConfig(interval_s=0.05, timeout_s=REQUEST_S, retry_s=0.2)


COMMAND_S = 90.0  # of a command that starts Python, imports MLflow and asks for REQUEST_S twice
COMMAND = f"""
import mmtrain.store.client
mmtrain.store.client.REQUEST_S = {REQUEST_S}
from mmtrain.cli import main
main()
"""


class SlowFromABatchOn:
    """The first batch of metrics is carried out; its answer, and what follows, trickles."""

    def __init__(self) -> None:
        self.has_begun = False

    def __call__(self, request: bytes) -> bool:
        self.has_begun |= b"log-batch" in request
        return self.has_begun


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def trickle() -> Iterator[Trickle]:
    with trickling() as server:
        yield server


def test_a_byte_a_second_bounds_opening_steps_and_closing_and_frees_the_journal(
    tmp_path: Path, trickle: Trickle
):
    config = CONFIG.model_copy(update={"uri": trickle.uri})
    began = time.monotonic()
    tracker = Tracker.open(config, out=tmp_path, name="slow", start_s=OPEN_S)
    assert time.monotonic() - began < OPEN_S + SLACK_S
    began = time.monotonic()
    for step in range(500):
        tracker.log_metrics({"loss": float(step)}, step=step)
    assert time.monotonic() - began < STEPS_S
    began = time.monotonic()
    tracker.close(status=None, timeout_s=CLOSE_S)
    assert time.monotonic() - began < CLOSE_S + SLACK_S
    journal = Journal.open(tmp_path / "tracking", resume=True, wait_s=0)  # the next is let in
    assert len(journal.unsent(max_events=1000)[0]) == 500
    journal.close()


def test_a_request_ends_at_its_bound_and_later_ones_are_tried_again(
    tmp_path: Path, trickle: Trickle, caplog: pytest.LogCaptureFixture
):
    config = CONFIG.model_copy(update={"uri": trickle.uri})
    tracker = Tracker.open(config, out=tmp_path, name="slow", start_s=REQUEST_S + SLACK_S + 5)
    assert f"no answer within {REQUEST_S} s" in caplog.text
    tracker.close(timeout_s=CLOSE_S)


def test_a_question_to_the_registry_ends_at_its_bound(
    trickle: Trickle, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(model_registry, "REQUEST_S", REQUEST_S)
    began = time.monotonic()
    with pytest.raises(RegistryError, match=f"{trickle.uri} does not answer: no answer within 2 s"):
        list_versions(trickle.uri)
    assert time.monotonic() - began < REQUEST_S + SLACK_S


def test_a_question_to_a_ray_cluster_ends_at_its_bound(
    trickle: Trickle, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jobs, "REQUEST_S", REQUEST_S / 2)
    began = time.monotonic()
    with pytest.raises(JobError, match=f"no Ray cluster answers at {trickle.uri}"):
        jobs.Cluster(trickle.uri)
    assert time.monotonic() - began < REQUEST_S + SLACK_S


def test_a_command_whose_download_trickles_ends_with_one_line(tmp_path: Path, server: Server):
    server.start()
    bundle = example_bundle(tmp_path / "bundle")
    register(bundle, name="tiny", tracking_uri=server.uri)
    with trickling(server.port) as line:
        line.slow = lambda request: request.startswith(b"GET") and b"/artifacts/" in request
        command = [sys.executable, "-c", COMMAND, "models", "download", "tiny"]
        command += ["--out", str(tmp_path / "out"), "--tracking", line.uri]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
    assert ended.returncode == 2, ended.stderr
    assert "error: " in ended.stderr
    assert f"no answer within {REQUEST_S} s" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()


def test_what_a_trickling_server_has_taken_is_not_sent_twice(tmp_path: Path, server: Server):
    server.start()
    with trickling(server.port) as line:
        line.slow = lambda request: False
        config = CONFIG.model_copy(update={"uri": line.uri, "timeout_s": 30})
        tracker = Tracker.open(config, out=tmp_path / "out", name="slow")
        tracker.log_metrics({"loss": 0.0}, step=0)
        assert tracker.flush(timeout_s=60)
        tracker.close(status=None)
        run_id = tracker.run_id or ""

        line.slow = SlowFromABatchOn()
        config = CONFIG.model_copy(update={"uri": line.uri})
        tracker = Tracker.open(config, out=tmp_path / "out", name="slow", resume=True)
        for step in range(1, 50):
            tracker.log_metrics({"loss": float(step)}, step=step)
        assert not tracker.flush(timeout_s=2 * REQUEST_S)
        assert MlflowClient(tracking_uri=server.uri).get_metric_history(run_id, "loss")[1:]
        tracker.close(status=None, timeout_s=CLOSE_S)

        line.slow = lambda request: False
        config = CONFIG.model_copy(update={"uri": line.uri, "timeout_s": 30})
        tracker = Tracker.open(config, out=tmp_path / "out", name="slow", resume=True)
        for step in range(40, 60):  # goes on from a checkpoint of step 40
            tracker.log_metrics({"loss": 100.0 + step}, step=step)
        assert tracker.flush(timeout_s=60)
        tracker.close(status="FINISHED")
    client = MlflowClient(tracking_uri=server.uri)
    points = client.get_metric_history(run_id, "loss")
    straight = [(step, float(step)) for step in range(50)]
    later = [(step, 100.0 + step) for step in range(50, 60)]
    assert sorted((point.step, point.value) for point in points) == straight + later
    assert client.get_run(run_id).info.status == "FINISHED"
    (experiment,) = [e for e in client.search_experiments() if e.name == "mmtrain"]
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_the_environment_is_set_once_and_what_the_user_set_stands(tmp_path: Path):
    script = """
import os, threading
from mmtrain.store import client
changes, put = [], os.putenv
os.putenv = lambda name, value: (changes.append(name.decode()), put(name, value))
threads = [
    threading.Thread(target=lambda: [client.settle() for _ in range(200)]) for _ in range(8)
]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(changes) == len(set(changes)) == len(client._SETTINGS) - 1, changes
print(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"], os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
"""
    unsettled = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=unsettled | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "7"},
        capture_output=True, text=True, timeout=COMMAND_S, check=False,
    )  # fmt: skip
    assert ended.stdout.split() == ["7", "0"], ended.stderr
