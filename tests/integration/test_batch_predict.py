"""Batch prediction on a Ray cluster: resumed equals straight, also after a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from mmtrain.predict.batch import BatchError, BatchProgress, batch_predict
from mmtrain.predict.bulk_output import BatchOutputError
from tests.mmtrain.example_bundle import example_bundle
from tests.mmtrain.example_corpus import NAMES
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("ray_cluster")

NUM_ROWS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    example_bundle(folder / "bundle")
    lines = [json.dumps({"input": NAMES[row % 4][0]}) for row in range(NUM_ROWS)]
    lines[7] = json.dumps({"input": None})
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def straight(folder: Path, ray_cluster: None) -> bytes:
    result = predict(folder, "straight.jsonl")
    assert (result.num_rows, result.num_failed, result.num_parts) == (NUM_ROWS, 1, 12)
    assert result.reasons == {"no text in 'input'": 1}
    return answers(folder / "straight.jsonl")


def predict(folder: Path, out: str, **options):
    where = {"data": str(folder / "data.jsonl"), "out": folder / out, "rows_a_part": 5}
    return batch_predict(
        str(folder / "bundle"), **where, task="names", batch_size=2, concurrency=1, **options
    )


def answers(out: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(out.glob("part-*.jsonl")))


def test_rows_keep_their_order_over_parts(straight: bytes):
    rows = [json.loads(line) for line in straight.splitlines()]
    assert [row["row"] for row in rows] == list(range(NUM_ROWS))
    assert [row["row"] for row in rows if row["error"]] == [7]


def test_stopped_halfway_and_resumed_equals_straight(folder: Path, straight: bytes):
    def stop_halfway(progress: BatchProgress) -> None:
        if progress.done >= NUM_ROWS // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(folder, "stopped.jsonl", on_progress=stop_halfway)
    assert not (folder / "stopped.jsonl" / "_COMPLETED").exists()
    seen: list[BatchProgress] = []
    result = predict(folder, "stopped.jsonl", on_progress=seen.append)
    assert result.resumed_rows >= NUM_ROWS // 2
    assert seen[0].done == result.resumed_rows
    assert seen[-1].done == seen[-1].total == NUM_ROWS
    assert answers(folder / "stopped.jsonl") == straight


def test_killed_and_resumed_equals_straight(folder: Path, straight: bytes):
    out = folder / "killed.jsonl"
    command = [sys.executable, "-m", "mmtrain", "predict", str(folder / "bundle")]
    command += ["--input", str(folder / "data.jsonl"), "--output", str(out), "--task", "names"]
    command += ["--part-rows", "5", "--batch-size", "2", "--concurrency", "1"]
    command += ["--address", ray.get_runtime_context().gcs_address]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )  # fmt: skip
    wait_until(lambda: list(out.glob("part-*")) or process.poll() is not None, every_s=0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(out.glob("part-*")), (folder / "log").read_text()
    predict(folder, "killed.jsonl")
    assert answers(out) == straight


def test_a_call_that_is_done_starts_nothing_and_says_the_same(folder: Path, straight: bytes):
    again = predict(folder, "straight.jsonl", address="no.such.cluster:1")
    assert (again.num_rows, again.resumed_rows, again.num_failed) == (NUM_ROWS, NUM_ROWS, 1)


def test_another_model_or_input_in_the_same_folder_is_refused(folder: Path, straight: bytes):
    with (folder / "data.jsonl").open("a") as file:
        file.write(json.dumps({"input": "Peru"}) + "\n")
    with pytest.raises(BatchOutputError, match="predictions of another input"):
        predict(folder, "straight.jsonl")


def test_data_of_which_nothing_can_be_read_is_an_error(folder: Path):
    (folder / "bad.jsonl").write_text("no\nno\n")
    with pytest.raises(BatchError, match="none of 2 rows could be read"):
        batch_predict(
            str(folder / "bundle"), data=str(folder / "bad.jsonl"), out=folder / "bad", task="names"
        )


def test_more_actors_than_the_cluster_has_room_for_are_refused(folder: Path):
    with pytest.raises(BatchError, match="--concurrency 7 needs as many CPUs, the cluster has 6"):
        batch_predict(
            str(folder / "bundle"), data=str(folder / "data.jsonl"), out=folder / "many",
            task="names", rows_a_part=1, concurrency=7,
        )  # fmt: skip
