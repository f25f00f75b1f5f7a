"""Deaths of a real `mmtrain train`: one line each, nothing left running, and --resume goes on."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from mmtrain import checkpoint
from mmtrain.recipe import load_recipe
from mmtrain.train import build_corpora
from pipelines.ownership import sole_owner

START_S, END_S, LEFT_S = 240, 240, 30  # longest waits, on a busy machine
SAVE_EVERY = 5
MARK = "MMTRAIN_TEST_COMMAND"  # all processes of a command inherit it


@dataclass
class Command:
    """A run in a process of its own, with a cluster of its own."""

    out: Path
    data_dir: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def start(self, *options: str) -> "Command":
        """Trains without end; goes on where the folder has a run."""
        words = [sys.executable, "-m", "mmtrain", "train", "debug", "--out", str(self.out)]
        words += ["--data", str(self.data_dir), "--task", "image_classification", "--resume"]
        for name, value in (("num_steps", 100_000), ("save_every", SAVE_EVERY), ("log_every", 1)):
            words += ["--set", f"{name}={value}"]
        env = {name: value for name, value in os.environ.items() if name != "RAY_BACKEND_LOG_LEVEL"}
        self.process = subprocess.Popen(
            [*words, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True, env={**env, MARK: self.mark, "PYTHONPATH": os.getcwd()},
        )  # fmt: skip
        return self

    def wait_for_step(self, step: int) -> "Command":
        """Until so many steps are behind the run."""
        deadline = time.monotonic() + START_S
        while self.last_step() < step and self.process.poll() is None:
            assert time.monotonic() < deadline, "the run has not begun"
            time.sleep(0.1)
        assert self.process.poll() is None, self.process.communicate()[1]
        return self

    def last_step(self) -> int:
        path = self.out / "series.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        return json.loads(lines[-2])["step"] if len(lines) > 1 else 0

    def end(self) -> tuple[int, str]:
        """Its exit status and what it has said on stderr, when all its processes are gone."""
        try:
            said = self.process.communicate(timeout=END_S)[1]
            deadline = time.monotonic() + LEFT_S
            while (left := self.processes()) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert [" ".join(process.cmdline()) for process in left] == []
            return self.process.returncode, said
        finally:
            for process in self.processes():
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """All that carry its mark and are alive."""
        found = []
        for process in psutil.process_iter():
            try:
                is_dead = process.status() == psutil.STATUS_ZOMBIE
                if not is_dead and process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:
                continue  # it ended meanwhile
        return found

    def kill_one(self, name: str) -> None:
        """Kills one of Ray's processes."""
        chosen = [one for one in self.processes() if name in " ".join(one.cmdline())]
        assert chosen, name
        chosen[0].kill()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, ray_cluster) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    build_corpora(load_recipe("debug").only(["image_classification"]), data_dir=folder)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """One run that every test kills and the next one goes on with."""
    return tmp_path_factory.mktemp("faults") / "run"


@pytest.fixture
def command(out: Path, data_dir: Path) -> Command:
    return Command(out, data_dir)


def check_saved(out: Path) -> None:
    """What was saved stands, and nobody owns the folder."""
    saved = checkpoint.latest(out / "checkpoints")
    assert saved is not None
    assert saved.step % SAVE_EVERY == 0
    with sole_owner(out, option="--out"):
        pass


def test_second_run_in_a_folder_is_refused_and_the_first_lives_on_until_it_is_killed(command, out):
    first = command.start().wait_for_step(SAVE_EVERY + 1)
    recipe = (out / "recipe.json").read_bytes()
    second = Command(out, command.data_dir).start("--set", "seed=9")
    status, said = second.end()
    assert status == 2
    assert f"{out} is in use by process {first.process.pid} on " in said
    assert len(said.splitlines()) == 1
    assert (out / "recipe.json").read_bytes() == recipe
    assert not (out / "failure.json").exists()
    first.wait_for_step(first.last_step() + 2)
    first.process.kill()
    assert first.end()[0] == -signal.SIGKILL
    check_saved(out)


def test_terminated_run_ends_in_order_with_status_143(command, out):
    run = command.start()
    run.wait_for_step(run.last_step() + SAVE_EVERY + 1)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == (
        143,
        f"error: terminated; what was saved in {out} stands, go on with --resume\n",
    )
    check_saved(out)


def test_run_whose_controller_is_killed_ends_in_one_line(command, out):
    run = command.start()
    run.wait_for_step(run.last_step() + SAVE_EVERY + 1)
    run.kill_one("TrainController")
    status, said = run.end()
    assert (status, len(said.splitlines())) == (2, 1)
    assert "Ray's controller of the run died: its process was killed or crashed" in said
    assert f"More is in {out}/errors.log. What was saved stands; go on with --resume" in said
    assert "class_name: TrainController" in (out / "errors.log").read_text()
    check_saved(out)


def test_run_that_loses_a_worker_too_often_ends_in_one_line(command, out):
    run = command.start("--set", "max_failures=0")
    run.wait_for_step(run.last_step() + 2)
    run.kill_one("RayTrainWorker")
    status, said = run.end()
    assert (status, len(said.splitlines())) == (2, 1)
    assert "workers failed more than 0 times, the last with: its process was killed" in said
    check_saved(out)


def test_run_goes_on_after_all_of_them_to_its_end(command, out):
    before = checkpoint.latest(out / "checkpoints")
    assert before is not None
    run = command.start("--set", f"num_steps={before.step + 3}")
    assert run.end()[0] == 0
    assert (out / "bundle" / "bundle.json").exists()


def test_ray_that_is_not_up_in_time_ends_in_one_line(tmp_path, data_dir):
    command = Command(tmp_path / "run", data_dir).start()
    deadline = time.monotonic() + START_S
    while not (raylets := [p for p in command.processes() if p.name() == "raylet"]):
        assert time.monotonic() < deadline
        assert command.process.poll() is None
        time.sleep(0.01)
    raylets[0].suspend()
    status, said = command.end()
    assert (status, len(said.splitlines())) == (2, 1)
    assert "Ray does not start: " in said
