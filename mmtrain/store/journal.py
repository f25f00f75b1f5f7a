"""The tracking journal: events in a JSONL file, in order, with a mark of how far they were sent.

The file is the queue. A training step appends one line and goes on; a sender reads from the mark
and moves it after each delivery. Whatever dies, and whenever, the next start sends the rest.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from filelock import BaseFileLock, FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from mmtrain.process.line_file import LineFile
from pipelines.errors import MMTrainError, first_problem
from pipelines.files import read_retried, write_whole

Event = Mapping[str, Any]  # "kind" and what that kind needs, as JSON


class JournalError(MMTrainError):
    """The journal cannot be opened."""


@dataclass(slots=True)
class Mark:
    """Which run the events belong to and how many bytes of them were sent."""

    key: str
    run_id: str | None = None
    sent_bytes: int = 0


class Journal:
    """Events of one run. One process writes at a time; a lock on the folder holds others off.

    Threads may share one. Once it is closed the folder is another's, and nothing is written: a
    sender that still waits for MLflow then moves no mark.
    """

    def __init__(self, folder: Path, mark: Mark, lock: BaseFileLock) -> None:
        self._folder, self.mark, self._lock = folder, mark, lock
        self._events = LineFile(folder / "events.jsonl")
        self._writing, self._is_closed = threading.Lock(), False

    @classmethod
    def open(cls, folder: Path, *, resume: bool, wait_s: float = 10.0) -> Self:
        """Opens the folder's journal; without `resume` a new one, the old set aside.

        Raises:
            JournalError: another process still writes it after `wait_s`, or its mark is damaged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock", thread_local=False)  # closed by whichever thread is last
        try:
            lock.acquire(timeout=wait_s)
        except Timeout:
            raise JournalError(
                f"{folder} is written by another process after {wait_s:.0f} s of waiting; "
                "let that run end or give another --out"
            ) from None
        try:
            if not resume:
                _set_aside(folder)
            _cut_torn_line(folder / "events.jsonl")
            journal = cls(folder, _load_mark(folder), lock)
            journal.move_mark()
        except BaseException:
            lock.release()
            raise
        return journal

    @property
    def closed(self) -> bool:
        """Whether the folder was given to the next process."""
        return self._is_closed

    def append(self, event: Event) -> None:
        """Adds an event; it survives the process, though not a power cut, nor a full disk."""
        with self._writing:
            self._events.append(event)

    def unsent(self, *, max_events: int) -> tuple[list[tuple[Event, int]], int]:
        """The next events, each with the offset of its end, and the bytes not yet sent."""
        events: list[tuple[Event, int]] = []
        if not (self._folder / "events.jsonl").exists():  # a disk too full for an empty file
            return events, 0
        with (self._folder / "events.jsonl").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(self.mark.sent_bytes)
            for line in file:
                if len(events) == max_events or not line.endswith(b"\n"):  # still being written
                    break
                offset = self.mark.sent_bytes if not events else events[-1][1]
                events.append((json.loads(line), offset + len(line)))
        return events, size - self.mark.sent_bytes

    def move_mark(self, *, run_id: str | None = None, sent_bytes: int | None = None) -> None:
        """Writes what is new of the mark, whole or not at all."""
        with self._writing:
            if self.closed:
                return
            self.mark.run_id = self.mark.run_id if run_id is None else run_id
            self.mark.sent_bytes = self.mark.sent_bytes if sent_bytes is None else sent_bytes
            write_whole(self._folder / "mark.json", json.dumps(asdict(self.mark)))

    def close(self) -> None:
        """Closes the file and lets the next process in."""
        with self._writing:
            self._is_closed = True
            self._events.close()
            self._lock.release()


def _set_aside(folder: Path) -> None:
    if (folder / "mark.json").exists():
        aside = folder / f"before-{time.time_ns()}"
        aside.mkdir()
        for name in ("mark.json", "events.jsonl"):
            if (folder / name).exists():
                (folder / name).rename(aside / name)


def _cut_torn_line(path: Path) -> None:
    """Takes off a last line that its writer did not live to end; more would be added to it."""
    if path.exists():
        whole = path.read_bytes()
        os.truncate(path, whole.rfind(b"\n") + 1)


def _load_mark(folder: Path) -> Mark:
    path = folder / "mark.json"
    try:
        return TypeAdapter(Mark).validate_json(read_retried(path.read_bytes, path=path))
    except FileNotFoundError:
        return Mark(key=uuid.uuid4().hex)
    except ValidationError as error:
        raise JournalError(
            f"{path} is damaged: {first_problem(error)}; remove it, and the journal is sent anew "
            "from its first line, to a new run in MLflow"
        ) from None
