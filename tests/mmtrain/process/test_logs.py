"""What stands on stderr, at which loudness, and what a run's log.txt holds of all its ranks."""

import logging
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmtrain.process import logs
from mmtrain.process.logs import LogFile, hush, relayed
from tests.logs_kept import logs_kept

OURS, OTHERS = logging.getLogger("mmtrain.a"), logging.getLogger("library.b")
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (driver|rank \d) (\w+) ([\w.]+): (.*)")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    with logs_kept():
        yield


def lines(path: Path) -> list[tuple[str, ...]]:
    """Of a log: who, level, logger and message, each of a line."""
    found = [LINE.fullmatch(line) for line in path.read_text().splitlines()]
    assert all(found)
    return [match.groups() for match in found if match]


def say_all() -> None:
    for logger in (OURS, OTHERS):
        for level in (logging.INFO, logging.WARNING, logging.ERROR):
            logger.log(level, "%s", logger.name[-1])


@pytest.mark.parametrize(
    ("loudness", "shown"),
    [
        ("quiet", "error: a"),
        ("normal", "warning: a, error: a, error: b"),
        ("verbose", "info: a, warning: a, error: a, warning: b, error: b"),
    ],
)
def test_a_loudness_shows_more_of_this_project_than_of_libraries(capsys, loudness, shown):
    logs.set_up()
    logs.set_up(loudness)
    say_all()
    assert capsys.readouterr().err.splitlines() == shown.split(", ")
    assert logs.is_quiet() == (loudness == "quiet")


def test_hushed_libraries_say_no_more_than_errors_or_warnings_when_verbose():
    for loudness, level in (("normal", logging.ERROR), ("verbose", logging.WARNING)):
        logs.set_up(loudness)
        hush("library.hushed")
        assert logging.getLogger("library.hushed.below").getEffectiveLevel() == level


def record_of(rank: int, message: str, level: int = logging.WARNING) -> logging.LogRecord:
    """A record as it comes from a rank."""
    sent: list[bytes] = []
    with relayed(lambda record: sent.append(pickle.dumps(record)), rank=rank):
        OURS.log(level, "%s", message)
    (record,) = map(pickle.loads, sent)
    return record


def test_a_warning_of_several_ranks_is_shown_once_and_its_repetition_again(capsys, tmp_path):
    records = [record_of(rank, "no room") for rank in (1, 0, 1)]
    records += [record_of(0, "slow disk"), record_of(0, "saved", logging.INFO)]
    logs.set_up()
    with LogFile(tmp_path / "log.txt") as file:
        OURS.warning("slow %s", "disk")
        for record in records:
            file.take(record)
    assert capsys.readouterr().err.splitlines() == [
        "warning: slow disk", "warning: no room", "warning: no room",
    ]  # fmt: skip
    assert [(who, message) for who, _, _, message in lines(tmp_path / "log.txt")] == [
        ("driver", "slow disk"), ("rank 1", "no room"), ("rank 0", "no room"),
        ("rank 1", "no room"), ("rank 0", "slow disk"), ("rank 0", "saved"),
    ]  # fmt: skip


def test_a_log_is_added_to_and_each_line_of_a_traceback_has_its_head(tmp_path):
    for word in ("first", "again"):
        with LogFile(tmp_path / "log.txt", who="rank 0"):
            OURS.warning("%s", word)
    with LogFile(tmp_path / "log.txt"):
        try:
            raise ValueError("bad")
        except ValueError:
            OURS.exception("it failed")
    first, again, failed, *trace = lines(tmp_path / "log.txt")
    assert first == ("rank 0", "WARNING", "mmtrain.a", "first")
    assert again[3] == "again"
    assert failed == ("driver", "ERROR", "mmtrain.a", "it failed")
    assert {line[:3] for line in trace} == {failed[:3]}
    assert trace[-1][3] == "ValueError: bad"


def test_python_s_warnings_of_a_rank_go_to_the_log_alone(capsys, tmp_path):
    logs.set_up()
    sent: list[logging.LogRecord] = []
    with relayed(sent.append, rank=1):
        logging.getLogger().removeHandler(logs._stderr)  # a rank shows nothing itself
        warnings.warn("old", UserWarning, stacklevel=1)
    logs.set_up()
    with LogFile(tmp_path / "log.txt") as file:
        file.take(sent[0])
    assert capsys.readouterr().err == ""
    assert lines(tmp_path / "log.txt")[0][:3] == ("rank 1", "WARNING", "py.warnings")


def test_a_full_disk_stops_no_run_and_lines_that_waited_follow(small_disk: Path, capsys):
    records = [record_of(0, f"{number}" * 1000, logging.INFO) for number in range(9)]
    logs.set_up()
    path = small_disk / "log.txt"
    with LogFile(path) as file:
        OURS.warning("before")
        with pytest.raises(OSError, match="No space"):
            (small_disk / "ballast").write_bytes(b"x" * 70_000)
        for record in records:
            file.take(record)
        (small_disk / "ballast").unlink()
        OURS.warning("after")
    messages = [message for *_, message in lines(path)]
    assert messages[0] == "before"
    assert messages[-1] == "after"
    assert f"{path}: No space left on device; lines wait in memory" in messages
    assert [m for m in messages if m.isdigit()] == [record.getMessage() for record in records]


def test_without_a_set_up_warnings_stand_on_stderr_as_python_has_them(tmp_path):
    """A program of the user's that calls `train` and has configured nothing."""
    program = (
        "import logging, pathlib\nfrom mmtrain.process.logs import LogFile\n"
        "logger = logging.getLogger('mmtrain.x')\n"
        "with LogFile(pathlib.Path('log.txt')):\n  logger.info('no')\n  logger.warning('yes')\n"
        "assert not logging.getLogger().handlers"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stderr == "yes\n"
    assert [message for *_, message in lines(tmp_path / "log.txt")] == ["yes"]
