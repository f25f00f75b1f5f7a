"""Tracking against a real SQLite store and a real server that goes away and comes back."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mmtrain.store.config import TrackingConfig
from mmtrain.store.journal import Journal, JournalError
from mmtrain.store.tracking import Tracker, flatten
from tests.mmtrain.example_mlflow import Server
from tests.waiting import BUSY_S, SOON_S

CONFIG = TrackingConfig(interval_s=0.05, timeout_s=2, retry_s=0.2)


def history(tracker: Tracker, key: str, *, run_id: str | None = None) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=tracker.uri)
    found = client.get_metric_history(run_id or tracker.run_id or "", key)
    return sorted((item.step, item.value) for item in found)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite file for the module: making its tables takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlruns.db'}"
    MlflowClient(tracking_uri=uri).search_experiments()
    return uri


@pytest.fixture
def config(store: str) -> TrackingConfig:
    return CONFIG.model_copy(update={"uri": store})


def test_the_default_store_is_a_file_beside_the_run(tmp_path: Path):
    with Tracker.open(CONFIG, out=tmp_path, name="first", start_s=BUSY_S) as tracker:
        tracker.log_text("{}", name="recipe.json")
    assert tracker.uri == f"sqlite:///{tmp_path / 'mlruns.db'}"
    client = MlflowClient(tracking_uri=tracker.uri)
    assert client.get_run(tracker.run_id or "").info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(tracker.run_id or "")] == ["recipe.json"]
    assert list((tmp_path / "mlartifacts").rglob("recipe.json"))


def test_a_run_holds_params_tags_metrics_and_datasets(tmp_path: Path, config: TrackingConfig):
    with Tracker.open(config, out=tmp_path, name="full") as tracker:
        tracker.log_params({"seed": 3, "model": {"depth": 2, "note": "x" * 9000}, "odd:key": 1})
        tracker.log_tags({"recipe_digest": "abc"})
        tracker.log_metrics({"loss/parsing": 1.5, "bad": float("nan")}, step=0)
        tracker.log_metrics({"loss/parsing": 1.25}, step=7)
        tracker.log_dataset(
            "parsing.train", digest="d" * 64, source="raw/trees", context="training"
        )
        assert tracker.flush(timeout_s=BUSY_S)
        assert history(tracker, "loss/parsing") == [(0, 1.5), (7, 1.25)]
    run = MlflowClient(tracking_uri=tracker.uri).get_run(tracker.run_id or "")
    assert run.data.params["model.depth"] == "2"
    assert run.data.params["odd_key"] == "1"
    assert len(run.data.params["model.note"]) == 6000
    assert run.data.tags["recipe_digest"] == "abc"
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    assert run.info.status == "FINISHED"


def test_an_exception_ends_the_run_as_failed(tmp_path: Path, config: TrackingConfig):
    with (
        pytest.raises(ZeroDivisionError),
        Tracker.open(config, out=tmp_path, name="failing") as tracker,
    ):
        raise ZeroDivisionError
    run = MlflowClient(tracking_uri=tracker.uri).get_run(tracker.run_id or "")
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("other_machine", [False, True])
def test_a_resumed_run_repeats_no_step(tmp_path: Path, config: TrackingConfig, other_machine: bool):
    tracker = Tracker.open(config, out=tmp_path / "a", name="resumed")
    for step in range(8):
        tracker.log_metrics({"loss": float(step)}, step=step)
    tracker.log_params({"seed": 1})
    tracker.close(status=None)  # killed at step 8, its checkpoint is of step 5
    run_id = tracker.run_id
    out = tmp_path / ("b" if other_machine else "a")
    again = Tracker.open(config, out=out, name="resumed", run_id=run_id)
    again.log_params({"seed": 2})
    for step in range(5, 12):
        again.log_metrics({"loss": 100.0 + step}, step=step)
    again.close()
    assert again.run_id == run_id
    straight = [(step, float(step)) for step in range(8)]
    assert history(again, "loss") == straight + [(step, 100.0 + step) for step in range(8, 12)]
    run = MlflowClient(tracking_uri=again.uri).get_run(run_id or "")
    assert run.data.params == {"seed": "1"}


def test_a_new_run_in_the_same_folder_is_another_run(tmp_path: Path, config: TrackingConfig):
    ids = set()
    for _ in range(2):
        with Tracker.open(config, out=tmp_path, name="again") as tracker:
            tracker.log_metrics({"loss": 1.0}, step=0)
        ids.add(tracker.run_id)
    assert len(ids) == 2


def test_a_refused_value_is_said_and_what_follows_is_sent(
    tmp_path: Path, config: TrackingConfig, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING), Tracker.open(config, out=tmp_path, name="r") as tracker:
        tracker.log_dataset("", digest="", source="", context="training")  # MLflow wants a name
        tracker.log_metrics({"loss": 1.0}, step=0)
        tracker.log_artifact(tmp_path / "gone.html")
        assert tracker.flush(timeout_s=BUSY_S)
        assert history(tracker, "loss") == [(0, 1.0)]
    assert "gone.html is gone" in caplog.text


def test_a_journal_has_one_writer(tmp_path: Path):
    journal = Journal.open(tmp_path, resume=False)
    with pytest.raises(JournalError, match="another process"):
        Journal.open(tmp_path, resume=True, wait_s=0.1)
    journal.close()
    Journal.open(tmp_path, resume=True).close()


def test_a_torn_last_line_is_not_read_and_goes_with_its_writer(tmp_path: Path):
    journal = Journal.open(tmp_path, resume=False)
    journal.append({"kind": "tags", "values": {}})
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "ta')
    events, left = journal.unsent(max_events=9)
    assert len(events) == 1
    assert left > events[0][1]
    journal.close()
    again = Journal.open(tmp_path, resume=True)  # its writer is dead: the torn line never ends
    again.append({"kind": "status", "status": "FAILED"})
    assert [event["kind"] for event, _ in again.unsent(max_events=9)[0]] == ["tags", "status"]
    again.close()


def test_flatten_names_nested_values_with_dots():
    assert flatten({"a": {"b": 1, "c": {}}, "d": (1, 2)}) == {
        "a.b": "1",
        "a.c": "{}",
        "d": "(1, 2)",
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


def test_a_server_that_goes_away_stops_nothing_and_misses_nothing(tmp_path: Path, server: Server):
    config = CONFIG.model_copy(update={"uri": server.uri, "timeout_s": BUSY_S})
    out = tmp_path / "out"

    began = time.monotonic()
    early = Tracker.open(config, out=out, name="away")  # no server yet: no run id, no error
    early.log_metrics({"loss": 0.0}, step=0)
    early.close(status=None)
    assert early.run_id is None
    assert time.monotonic() - began < SOON_S

    server.start()
    tracker = Tracker.open(config, out=out, name="away", resume=True)
    tracker.log_metrics({"loss": 1.0}, step=1)
    assert tracker.flush(timeout_s=BUSY_S)

    server.kill()
    began = time.monotonic()
    for step in range(2, 502):
        tracker.log_metrics({"loss": float(step)}, step=step)
    assert time.monotonic() - began < SOON_S  # 500 waits of `retry_s` are 100 s
    assert not tracker.flush(timeout_s=0.5)

    server.start()
    tracker.log_text(json.dumps({"name": "away"}), name="recipe.json")
    assert tracker.flush(timeout_s=BUSY_S)
    tracker.close()
    assert history(tracker, "loss") == [(step, float(step)) for step in range(502)]
    client = MlflowClient(tracking_uri=server.uri)
    assert client.get_run(tracker.run_id or "").info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(tracker.run_id or "")] == ["recipe.json"]
