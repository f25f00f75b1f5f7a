import json
from pathlib import Path

import pytest

from mmtrain.engines import StepStats
from mmtrain.recipe import load_recipe
from mmtrain.run.job import Job
from mmtrain.run.progress import RunProgress, progress_line
from mmtrain.run.runlog import EXAMPLES, SERIES, Agreement, RunLog, read_agreement, read_series
from mmtrain.step.series import Point, TaskPoint
from mmtrain.store.config import TrackingConfig

JOURNAL = "tracking/events.jsonl"


def test_agreement_is_the_mean_of_what_was_measured(tmp_path):
    path = tmp_path / "gradients.jsonl"
    lines = [
        {"step": 5, "tasks": ["a", "b"], "cosines": [[1.0, None], [None, None]]},
        {"step": 10, "tasks": ["a", "b"], "cosines": [[1.0, 0.5], [0.5, 1.0]]},
        {"step": 15, "tasks": ["a", "b"], "cosines": [[1.0, -0.1], [-0.1, 1.0]]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 20, "ta')
    assert read_agreement(path) == Agreement(("a", "b"), [[1.0, 0.2], [0.2, 1.0]])


def test_a_run_without_samples_has_no_agreement(tmp_path):
    assert read_agreement(tmp_path / "gradients.jsonl") == Agreement()


@pytest.fixture
def posted() -> list[RunProgress]:
    return []


def log_of(out: Path, posted: list[RunProgress], *, first_step: int = 0) -> RunLog:
    tracking = TrackingConfig(uri="http://127.0.0.1:9", timeout_s=1)  # nobody is there
    job = Job("{}", out, out, tracking, run_id=None)
    recipe = load_recipe("debug").only(["parsing"])
    return RunLog(job, recipe, post=posted.append, first_step=first_step)


def add_point(log: RunLog, step: int) -> None:
    point = Point({"parsing": TaskPoint(loss=1.0, auxiliary=0.0, examples=8)}, 1.0, {})
    log.point(step, point, stats=StepStats(1.0, {"parsing": 0.1}), counts={"parsing": step})


def test_full_disk_does_not_stop_a_run_and_is_told_with_how_many_lines(small_disk, posted):
    log = log_of(small_disk, posted)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "ballast").write_bytes(b"x" * 70_000)
    log.examples(0, [3, 4])
    for step in (1, 2):
        add_point(log, step)
    assert posted[-1].note == "3 lines of metrics not written: is the disk full?"
    assert posted[-1].note in progress_line(posted[-1])
    (small_disk / "ballast").unlink()
    log.examples(2, [5])
    add_point(log, 3)
    assert posted[-1].note == ""
    assert [line["step"] for line in read_series(small_disk / SERIES)] == [1, 2, 3]
    assert [line["step"] for line in read_series(small_disk / EXAMPLES)] == [0, 2]
    assert [line["step"] for line in read_series(small_disk / JOURNAL) if "step" in line] == [
        1,
        2,
        3,
    ]
    log.close()


def test_log_that_goes_on_is_cut_at_its_step_and_at_a_torn_line(tmp_path, posted):
    log = log_of(tmp_path, posted)
    for step in (1, 2, 3):
        add_point(log, step)
    log.close()
    whole = (tmp_path / SERIES).read_bytes()
    (tmp_path / SERIES).write_bytes(whole + b'{"step": 4, "el')
    log = log_of(tmp_path, posted, first_step=2)
    assert (tmp_path / SERIES).read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    add_point(log, 3)
    log.close()
    assert [line["step"] for line in read_series(tmp_path / SERIES)] == [1, 2, 3]
