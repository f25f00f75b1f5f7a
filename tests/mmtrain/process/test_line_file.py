"""Lines on a disk that is full, gets room again, or never does."""

import json
import logging
from pathlib import Path

from mmtrain.process.line_file import LineFile


def lines(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def test_lines_wait_while_the_disk_is_full_and_follow_in_order(small_disk: Path, caplog):
    (small_disk / "ballast").write_bytes(b"x" * 50_000)
    file = LineFile(small_disk / "a.jsonl")
    wide = "x" * 5_000
    for n in range(6):
        file.append({"n": n, "wide": wide})
    assert 0 < file.num_missing < 6
    there = lines(small_disk / "a.jsonl")  # whole lines alone
    assert there == list(range(6 - file.num_missing))
    assert [record.message for record in caplog.records] == [
        f"{small_disk}/a.jsonl: No space left on device; lines wait in memory"
    ]
    (small_disk / "ballast").unlink()
    file.append({"n": 6})
    assert (lines(small_disk / "a.jsonl"), file.num_missing) == (list(range(7)), 0)


def test_lines_beyond_the_bound_are_lost_the_oldest_first_and_counted_at_the_end(
    tmp_path: Path, caplog
):
    path = tmp_path / "a.jsonl"
    path.symlink_to("/dev/full")
    file = LineFile(path, max_waiting_bytes=3 * len('{"n": 0}\n'))
    for n in range(5):
        file.append({"n": n})
    assert (file.num_lost, file.num_missing) == (2, 5)
    path.unlink()
    file.append({"n": 5})
    assert lines(path) == [2, 3, 4, 5]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        file.close()
    assert caplog.messages == [f"{path}: 2 lines could not be written"]


def test_lines_are_added_to_those_of_before(tmp_path: Path):
    for n in range(2):
        file = LineFile(tmp_path / "a.jsonl")
        file.append({"n": n})
        file.close()
    assert lines(tmp_path / "a.jsonl") == [0, 1]
