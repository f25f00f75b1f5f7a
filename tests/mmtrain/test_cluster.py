"""Ray that does not start, does not answer, or loses a process: one line each."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from mmtrain.cluster import ClusterError, cluster_of, reason
from pipelines.errors import BuildError


@pytest.fixture
def no_ray(monkeypatch):
    """No cluster is started; what a test raises in the context comes from one."""
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})


def failing_init(error: BaseException):
    def init(**_: object) -> None:
        raise error

    return init


@pytest.mark.parametrize(
    ("address", "error", "says"),
    [
        (
            None,
            Exception("The current node timed out during startup. This could happen because"),
            r"Ray does not start: The current node timed out.*logs.*free CPU, memory",
        ),
        ("10.0.0.1:6379", ConnectionError("no\nanswer"), "no Ray cluster answers at 10.0.0.1:6379"),
    ],
)
def test_ray_that_is_not_there_is_one_line_with_a_remedy(monkeypatch, address, error, says):
    monkeypatch.setattr(ray, "init", failing_init(error))
    with pytest.raises(ClusterError, match=says) as raised, cluster_of(1, address=address):
        pass
    assert "\n" not in str(raised.value)


def test_cluster_has_a_cpu_more_than_is_asked_for_and_is_left_at_the_end(monkeypatch):
    calls: list[object] = []
    monkeypatch.setattr(ray, "init", lambda **settings: calls.append(settings["num_cpus"]))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 99.0})
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("left"))
    with cluster_of(97.5) as resources:
        assert resources == {"CPU": 99.0}
    assert calls == [99, "left"]


def test_process_that_ray_lost_is_one_line(no_ray):
    with pytest.raises(ClusterError, match=r"Ray lost a process: .*goes on"), cluster_of(1):
        raise ActorDiedError


def test_mistake_that_a_task_met_is_told_as_it_is(no_ray):
    mistake = RayTaskError("make", "Traceback\nof\nmany lines", BuildError("no voices"))
    with pytest.raises(BuildError, match=r"^no voices$"), cluster_of(1):
        raise mistake.as_instanceof_cause()


def test_reason_is_the_last_line_shortened():
    assert reason(ValueError("Traceback\n  at a\nValueError: no.")) == "ValueError: no"
    assert reason(ValueError()) == "ValueError"
    assert len(reason("x" * 5000)) == 300


def test_handlers_of_signals_are_those_of_before_when_the_cluster_has_gone(monkeypatch, no_ray):
    before = signal.getsignal(signal.SIGTERM)

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as ray.init does

    monkeypatch.setattr(ray, "init", init)
    with cluster_of(1):
        inside = signal.getsignal(signal.SIGTERM)
        assert inside is not before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("command", [["build", "debug"], ["serve", "bundle"]])
def test_command_without_ray_ends_in_one_line_and_status_2(tmp_path: Path, command: list[str]):
    from tests.mmtrain.example_bundle import example_bundle

    example_bundle(tmp_path / "bundle")
    (tmp_path / "file").write_text("")
    ended = subprocess.run(
        [sys.executable, "-m", "mmtrain", *command],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "RAY_TMPDIR": str(tmp_path / "file")},
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: Ray does not start: ")
