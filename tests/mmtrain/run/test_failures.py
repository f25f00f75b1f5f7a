"""Words between workers and driver: each attempt's own, and the log of tracebacks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError

import mmtrain.train as train_module
from mmtrain.process.errors import RunFailedError
from mmtrain.run.failures import failure_of, lost_run, raise_failure, write_failure
from mmtrain.run.job import Job
from mmtrain.step.policies import NonFiniteLossError
from mmtrain.store.config import TrackingConfig


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("{}", tmp_path, tmp_path, TrackingConfig(), run_id=None)


def test_failure_is_that_of_its_attempt_alone(job: Job):
    write_failure(job, NonFiniteLossError("parsing", 3, [1, 2], float("nan")))
    raise_failure(replace(job, attempt="another"))
    assert failure_of(replace(job, until=5)) is not None
    with pytest.raises(RunFailedError, match="step 3"):
        raise_failure(job)
    (job.out / "failure.json").write_text(json.dumps({"kind": "X", "message": "of long ago"}))
    raise_failure(job)


class Board:
    """An actor that takes progress and records."""

    class Call:
        remote = staticmethod(lambda *_: None)

    write = log = Call


def test_traceback_of_a_worker_goes_to_the_log_of_its_run(job: Job, monkeypatch):
    monkeypatch.setattr(train_module, "train_worker", lambda job, post: 1 // 0)
    monkeypatch.setattr(train_module, "wait_for_board", lambda board: None)
    with pytest.raises(ZeroDivisionError):
        train_module._worker({"job": job, "board": Board})
    log = (job.out / "errors.log").read_text()
    assert "train_worker(job" in log
    assert log.endswith("ZeroDivisionError: integer division or modulo by zero\n")


class WorkersError(Exception):
    """As Ray tells of it."""

    def __init__(self) -> None:
        super().__init__("all\nof it")
        self.worker_failures = {1: ValueError("bad value")}


def test_lost_run_is_one_line_that_says_where_more_is(job: Job):
    lines = [
        str(lost_run(job, error, max_failures=3)) for error in (WorkersError(), ActorDiedError())
    ]
    assert lines[0] == (
        f"workers failed more than 3 times, the last with: bad value. More is in {job.out}/"
        "errors.log. What was saved stands; go on with --resume"
    )
    assert lines[1].startswith("Ray's controller of the run died: ")
    assert "\n" not in lines[1]
    assert "all\nof it\n" in (job.out / "errors.log").read_text()
