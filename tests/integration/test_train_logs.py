"""What real workers log: on stderr once, and all of it in the run's log.txt."""

import io
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import mmtrain.train as train_module
from mmtrain.engines.ranks import Ranks
from mmtrain.process import logs
from mmtrain.recipe import load_recipe
from mmtrain.run.job import Job
from mmtrain.store.config import TrackingConfig
from mmtrain.train import run_workers
from tests.logs_kept import logs_kept

pytestmark = pytest.mark.usefixtures("ray_cluster")


def loud_worker(config: dict[str, Any]) -> None:
    """A worker as it is, but that it logs where it would train."""

    def train(job: Job, post: object) -> None:
        rank = Ranks.current(use_gpu=False).rank
        logging.getLogger("mmtrain.loud").info("rank %d is here", rank)
        logging.getLogger("mmtrain.loud").warning("the disk is slow")

    train_module.train_worker = train
    train_module._worker(config)


def run(out: Path) -> None:
    recipe = load_recipe("debug").with_(num_workers=2)
    job = Job(recipe.model_dump_json(), out, out, TrackingConfig(), run_id=None)
    run_workers(job, recipe, console=Console(file=io.StringIO()))


def test_a_warning_of_two_workers_stands_on_stderr_once_and_in_the_log_twice_with_their_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(train_module, "_worker", loud_worker)
    with logs_kept():
        logs.set_up()
        run(tmp_path)
    shown = capsys.readouterr().err.splitlines()
    assert shown.count("warning: the disk is slow") == 1
    lines = [line.split(" ", 1)[1] for line in (tmp_path / "log.txt").read_text().splitlines()]
    for rank in (0, 1):
        assert f"rank {rank} INFO mmtrain.loud: rank {rank} is here" in lines
        assert f"rank {rank} WARNING mmtrain.loud: the disk is slow" in lines
