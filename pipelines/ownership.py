"""One owner of a folder at a time: a lock that ends with the process that holds it.

The kernel holds the lock (`flock`; over NFS the file server), so that a kill frees it. Where a
file system has no locks a lease stands in, which its owner renews and others watch: a dead owner's
on the same machine is taken at once, on another after `LEASE_S`.
"""

import errno
import functools
import json
import logging
import os
import socket
import time
from _thread import interrupt_main
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from pipelines.errors import MMTrainError

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

LOCK = ".lock"
LEASE_S = 30.0
_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class FolderInUseError(MMTrainError):
    """Another process owns the folder, or it cannot be written."""


@contextmanager
def sole_owner(folder: Path, *, option: str, name: str = LOCK) -> Generator[None]:
    """Owns a folder, which is made where it is missing; its owner's thread may enter again.

    A folder that was made here and in which nothing was written goes away again.

    Args:
        folder: what to own, on any file system that its users share.
        option: of the command line that names another folder, for the message.
        name: file of the lock in the folder.

    Raises:
        FolderInUseError: another process or thread owns it, named by pid, host and time; or the
            folder cannot be written.
    """
    path = folder.absolute() / name
    missing = [one for one in (path.parent, *path.parent.parents) if not one.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path)
    except Timeout:
        raise FolderInUseError(
            f"{folder} is in use by {_owner(path)}; let it end, or give another {option}"
        ) from None
    except OSError as error:
        raise FolderInUseError(
            f"{folder} cannot be written: {error.strerror or error}; give another {option}"
        ) from None
    try:
        yield
    finally:
        if lock.lock_counter == 1 and missing and os.listdir(path.parent) == [name]:
            path.unlink()  # under the lock: who waits for this file sees that it is gone
            for empty in missing:
                empty.rmdir()
        lock.release()


def owns_out(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function the sole owner, from its first byte to its last, of its argument `out`."""

    @functools.wraps(function)
    def owning(*args: P.args, **kwargs: P.kwargs) -> R:
        folder = kwargs["out"]
        assert isinstance(folder, Path)
        with sole_owner(folder, option="--out"):
            return function(*args, **kwargs)

    return owning


def _acquire(path: Path) -> BaseFileLock:
    lock: BaseFileLock = FileLock(path, timeout=0, is_singleton=True, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in _WITHOUT_LOCKS:
            raise
        logger.warning("%s: no locks (%s), a lease is held", path.parent, error.strerror)
        lease = path.with_name(f"{path.name}.lease")
        lock = SoftFileLease(
            lease,
            timeout=LEASE_S + 10,  # that of a dead owner on another machine runs out
            lease_duration=LEASE_S,
            is_singleton=True,
            on_compromise=lambda lost: interrupt_main(),  # another took it: this one slept too long
        )
        lock.acquire()
    if lock.lock_counter == 1:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        path.write_text(json.dumps(owner) + "\n", encoding="utf-8")
    return lock


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError):  # it has the lock and has not yet written who it is
        return "another process"
