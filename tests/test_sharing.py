"""Small runs of pytest under the project's settings: whatever happens to a test, a run ends."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.sharing import ClusterApart

ROOT = Path(__file__).parents[1]
RUN_S = 300  # bound of a small run; seconds where the machine is quiet
HANG_S = 10  # after which a test of a small run counts as hanging in C

RECORDING = """
import ctypes, os
from pathlib import Path
import pytest

@pytest.fixture(autouse=True)
def record(request):
    with open("begun.txt", "a") as begun:
        begun.write(request.node.nodeid.removeprefix("tests/") + "\\n")
"""
HANG_IN_C = f"ctypes.PyDLL(None).sleep({RUN_S})"  # a PyDLL call holds the interpreter's lock


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with this project's settings of tests and no test."""
    (tmp_path / "tests" / "integration").mkdir(parents=True)
    for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py", "tests/sharing.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def write_tests(project: Path, files: dict[str, dict[str, str]]) -> list[str]:
    """Tests as file, name and statement; their ids."""
    for file, bodies in files.items():
        tests = [f"def {name}():\n    {body}\n" for name, body in bodies.items()]
        (project / "tests" / file).write_text("\n".join([RECORDING, *tests]))
    return sorted(f"{file}::{name}" for file, bodies in files.items() for name in bodies)


def run_pytest(project: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Exit status, and what was printed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    inherited = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    ended = subprocess.run(
        command, cwd=project, capture_output=True, text=True, timeout=RUN_S, check=False,
        env={**inherited, **environment},
    )  # fmt: skip
    return ended.returncode, ended.stdout + ended.stderr


def begun(project: Path) -> list[str]:
    return sorted((project / "begun.txt").read_text().split())


def failed(output: str) -> set[str]:
    return set(re.findall(r"^FAILED tests/(\S+)", output, re.MULTILINE))


TWO_PROCESSES = ("--numprocesses", "2", "--dist", "loadscope", "--no-loadscope-reorder")


def test_dead_processes_fail_the_tests_they_were_at_and_every_other_test_runs_once(project):
    tests = write_tests(
        project,
        {
            "test_a.py": {"test_1": "pass", "test_dies": "os.abort()", "test_2": "pass"},
            "test_b.py": {"test_1": "pass"},
            "test_c.py": {f"test_{number}": "pass" for number in range(4)},
            "test_d.py": {"test_1": "pass"},
            "integration/test_e.py": {"test_1": "pass", "test_2": "pass"},
            "integration/test_f.py": {"test_1": "pass", "test_last_dies": "os.abort()"},
        },
    )
    status, output = run_pytest(project, *TWO_PROCESSES)
    assert status == 1, output
    assert failed(output) == {"test_a.py::test_dies", "integration/test_f.py::test_last_dies"}
    assert "2 failed, 11 passed" in output
    assert begun(project) == tests


class Process:
    """What the scheduler knows of a process: the tests that it was given, by number."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self.shutting_down = False
        self.gateway = SimpleNamespace(id="gw")

    def send_runtest_some(self, numbers: list[int]) -> None:
        self.given += numbers

    def shutdown(self) -> None:
        self.shutting_down = True


def test_a_process_that_has_not_collected_when_another_dies_gets_its_tests_later():
    options: dict[str, Any] = {"tx": ["2*popen"]}
    scheduler = ClusterApart(
        SimpleNamespace(getvalue=options.get, option=SimpleNamespace(loadscopereorder=False))  # type: ignore[arg-type]
    )
    tests = [f"test_{file}.py::test_{number}" for file in "abc" for number in range(3)]
    dead, alive, late = Process(), Process(), Process()
    for process in (dead, alive):
        scheduler.add_node(process)
        scheduler.add_node_collection(process, tests)
    scheduler.schedule()
    assert (dead.given, alive.given) == ([0, 1, 2], [3, 4, 5])
    scheduler.add_node(late)
    assert scheduler.remove_node(dead) == tests[0]
    assert late.given == []
    scheduler.add_node_collection(late, tests)
    scheduler.schedule()
    assert late.given == [6, 7, 8]
    for number in late.given:
        scheduler.mark_test_complete(late, number)
    assert late.given == [6, 7, 8, 1, 2]


def test_a_run_whose_processes_all_die_ends(project):
    write_tests(project, {f"test_{name}.py": {"test_1": "os.abort()"} for name in "abcd"})
    status, output = run_pytest(project, *TWO_PROCESSES, "--max-worker-restart", "1")
    assert status == 1, output
    assert "4 failed" not in output  # a third process was not replaced


def test_a_test_that_hangs_in_c_fails_and_the_rest_runs(project):
    hanging = {"test_a.py": {"test_1": "pass", "test_hangs": HANG_IN_C, "test_2": "pass"}}
    tests = write_tests(project, {**hanging, "test_b.py": {"test_1": "pass"}})
    status, output = run_pytest(project, *TWO_PROCESSES, f"-ofaulthandler_timeout={HANG_S}")
    assert status == 1, output
    assert failed(output) == {"test_a.py::test_hangs"}
    assert begun(project) == tests


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        (("-p", "no:xdist"), {}),
        (("-p", "no:xdist", "-p", "no:timeout"), {}),
        ((), {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),
    ],
)
def test_plugins_of_pytest_are_not_needed(project, options, environment):
    tests = write_tests(project, {"test_a.py": {"test_1": "pass"}})
    status, output = run_pytest(project, *options, **environment)
    assert status == 0, output
    assert begun(project) == tests
