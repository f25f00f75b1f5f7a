"""Files: written whole or not at all, and read with a few tries; what fails says where and why.

A failed read is not bad contents: a disk or mount that does not answer says nothing of what was
written there. So it is an error of its own, and nothing is ever advised to be deleted for it.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipelines.errors import MMTrainError

T = TypeVar("T")

WAITS_S = (0.1, 0.4)  # before the second and third try: what passes by itself, passes quickly
LASTING = frozenset(
    (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
)


class FileReadError(MMTrainError):
    """A file is there and cannot be read; its contents may be as they were written."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be read: {self.reason}; what was written there is not known to "
            "be at fault: see to the disk or mount, then go on"
        )


class FileWriteError(MMTrainError):
    """A file cannot be written; nothing of it is left, and what was in its place stands."""


def os_reason(error: OSError) -> str:
    """An error of the operating system in its own words and by its name.

    >>> os_reason(OSError(5, ""))
    'Input/output error (EIO)'
    """
    if error.errno is None:
        return str(error)
    return f"{os.strerror(error.errno)} ({errno.errorcode.get(error.errno, error.errno)})"


def read_retried(
    read: Callable[[], T], *, path: str | Path, sleep: Callable[[float], object] | None = None
) -> T:
    """What `read` returns; an error that may pass is tried again, `WAITS_S` apart.

    An OSError without a number is a library's word on the contents, and goes through as it is.

    Args:
        read: opens and reads.
        path: of what is read, for the message.
        sleep: takes seconds; None: `time.sleep`.

    Raises:
        FileNotFoundError: there is no such file.
        FileReadError: it cannot be read, now or at all.
    """
    for wait_s in (*WAITS_S, None):
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno is None:
                raise
            if wait_s is None or error.errno in LASTING:
                raise FileReadError(str(path), os_reason(error)) from error
            (sleep or time.sleep)(wait_s)
    raise AssertionError


def write_whole(path: Path, data: bytes | str) -> None:
    """Writes a file whole or not at all, also over a power cut; of text as UTF-8.

    Raises:
        FileWriteError: there is no room, or the folder cannot be written.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)  # first: it would take what room is left
        raise write_error(error, path, needed_bytes=len(content)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Puts a file's contents, or the names in a folder, beyond the reach of a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(part: Path, folder: Path) -> None:
    """Moves a finished folder of files to its place; what was there goes when the new one is.

    Raises:
        OSError: it cannot; what was there is there again.
    """
    for path in (*part.iterdir(), part):
        sync(path)
    old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    try:
        part.rename(folder)
        sync(folder.parent)
    except OSError:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_error(error: OSError, path: Path, *, needed_bytes: int) -> FileWriteError:
    """What a failed write means for the user, with the room that it needs and that there is."""
    try:
        free = f"{shutil.disk_usage(path.parent).free:,} bytes are free"
    except OSError:
        free = "its free bytes cannot be told"
    return FileWriteError(
        f"{path} cannot be written: {os_reason(error)}; it needs {needed_bytes:,} bytes, in "
        f"{path.parent} {free}: make room there or choose another folder"
    )
