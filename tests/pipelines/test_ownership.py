"""Who owns a folder: two real processes, killed, frozen out, and on a file system without locks."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.build import build
from pipelines.ownership import LOCK, FolderInUseError, sole_owner

OWNER = """
import errno, fcntl, sys, time
from pathlib import Path
from pipelines.build import build
from pipelines.ownership import sole_owner

def no_locks(*_):
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")

if sys.argv[2] == "lease":
    fcntl.flock = no_locks
with sole_owner(Path(sys.argv[1]), option="--out"):
    print("owned", flush=True)
    sys.stdin.read()
"""


def start_owner(folder: Path, *, kind: str = "lock") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder), kind],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    return process


def test_second_owner_is_refused_by_pid_host_and_time_until_the_first_is_killed(tmp_path: Path):
    folder = tmp_path / "run"
    first = start_owner(folder)
    words = rf"in use by process {first.pid} on \S+ since \S+ \S+ UTC; .*another --out"
    with pytest.raises(FolderInUseError, match=words), sole_owner(folder, option="--out"):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with sole_owner(folder, option="--out"):
        assert str(os.getpid()) in (folder / LOCK).read_text()


def test_owner_may_enter_again_and_owns_until_it_has_left_as_often(tmp_path: Path):
    with sole_owner(tmp_path, option="--out"):
        with sole_owner(tmp_path, option="--out"):
            pass
        with pytest.raises(AssertionError):
            start_owner(tmp_path)  # says "error" where "owned" would be
    start_owner(tmp_path).kill()


def test_killed_owner_of_a_file_system_without_locks_is_followed(tmp_path: Path):
    first = start_owner(tmp_path, kind="lease")
    assert (tmp_path / f"{LOCK}.lease").exists()
    first.send_signal(signal.SIGKILL)
    first.wait()
    start_owner(tmp_path, kind="lease").kill()


def test_folder_in_which_nothing_was_written_goes_away_with_its_owner(tmp_path: Path):
    with sole_owner(tmp_path / "a" / "b", option="--out"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    with sole_owner(tmp_path / "c", option="--out"):
        (tmp_path / "c" / "recipe.json").write_text("{}")
    assert (tmp_path / "c" / "recipe.json").exists()


def test_folder_that_cannot_be_written_is_refused_with_its_reason(tmp_path: Path):
    (tmp_path / "file").write_text("")
    words = "file/run cannot be written: Not a directory; give another --data"
    with (
        pytest.raises(FolderInUseError, match=words),
        sole_owner(tmp_path / "file" / "run", option="--data"),
    ):
        pass


def test_build_into_a_folder_that_is_being_built_is_refused(tmp_path: Path):
    with (
        sole_owner(tmp_path, option="--data", name=".build.lock"),
        ThreadPoolExecutor() as others,
        pytest.raises(FolderInUseError, match=rf"by process {os.getpid()} .* another --data"),
    ):
        others.submit(build, [], data_dir=tmp_path).result()
