import errno
import os

import pytest

from pipelines.files import FileReadError, FileWriteError, read_retried, write_whole


def reading(*errors):
    """A read that fails with these errors, one a try, then answers; its tries are counted."""
    left, tries = list(errors), []

    def read():
        tries.append(len(tries))
        if left:
            raise left.pop(0)
        return "whole"

    return read, tries


def test_an_error_that_may_pass_is_tried_again_after_short_waits():
    waits = []
    read, tries = reading(OSError(errno.EIO, ""), OSError(errno.ESTALE, ""))
    assert read_retried(read, path="a", sleep=waits.append) == "whole"
    assert (len(tries), waits) == (3, [0.1, 0.4])


def test_after_three_tries_path_and_cause_are_named():
    read, tries = reading(*[OSError(errno.EIO, "")] * 9)
    with pytest.raises(FileReadError, match=r"^/d/a cannot be read: Input/output error \(EIO\);"):
        read_retried(read, path="/d/a", sleep=lambda _: None)
    assert len(tries) == 3


@pytest.mark.parametrize("number", [errno.EISDIR, errno.ELOOP, errno.EACCES])
def test_an_error_that_lasts_is_not_tried_again(number):
    read, tries = reading(OSError(number, ""))
    with pytest.raises(FileReadError, match=errno.errorcode[number]):
        read_retried(read, path="a", sleep=lambda _: pytest.fail("waited"))
    assert len(tries) == 1


@pytest.mark.parametrize("error", [FileNotFoundError(2, ""), OSError("checksum"), ValueError()])
def test_what_is_no_failed_read_goes_through(error):
    read, _ = reading(error)
    with pytest.raises(type(error)) as caught:
        read_retried(read, path="a", sleep=lambda _: pytest.fail("waited"))
    assert caught.value is error


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_whole(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileWriteError) as caught:
        write_whole(path, "newer")
    for part in (str(path), "(ENOSPC)", "needs 5 bytes", f"in {tmp_path}", "bytes are free"):
        assert part in str(caught.value)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_an_interrupted_write_leaves_nothing_beside_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_whole(path, "old")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "newer")
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]
