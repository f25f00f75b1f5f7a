"""`mmtrain tune` as a user meets it: mistakes are one line and leave nothing behind."""

import json
import os
import subprocess
import sys

import pytest

from pipelines.ownership import sole_owner
from tests.waiting import BUSY_S

LEARNING_RATE = {"kind": "loguniform", "low": 1e-4, "high": 1e-2}


def run(*arguments: str, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mmtrain", "tune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=BUSY_S, cwd=cwd)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["debug", "--sweep", "sweep.json"], "nearest: optimizer.learning_rate"),
        (["debug", "--sweep", "learning_rates"], "nearest: learning_rate"),
        (["debug", "--scheduler", "hyperband"], "hyperband"),
        (["debug", "--sweep", "model_size", "--per-task"], "all tasks share it"),
    ],
)
def test_mistake_is_one_clear_line_and_status_2(tmp_path, arguments, says):
    sweep = {"name": "mine", "space": {"optimizer.learning_rat": LEARNING_RATE}}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    ended = run(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_sweep_in_a_folder_that_has_an_owner_is_refused(tmp_path):
    with sole_owner(tmp_path / "out", option="--out"):
        ended = run("debug", "--out", "out", cwd=tmp_path)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert ended.returncode == 2
    assert f"out is in use by process {os.getpid()} on " in ended.stderr
