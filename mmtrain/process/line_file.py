"""A file of lines that a full disk does not stop.

A line that cannot be written waits in memory and is written with a later one, in order; beyond a
bound the oldest are lost, and counted. A line stands whole in the file or not at all.
"""

import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 16 * 2**20


class LineFile:
    """Adds lines to a file, which has one writer.

    Args:
        path: the file; it need not be there.
        max_waiting_bytes: of lines that wait for room on the disk.
    """

    def __init__(self, path: Path, *, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self._path, self._max_waiting_bytes = path, max_waiting_bytes
        self._file: BinaryIO | None = None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = self.num_lost = 0
        self._has_warned = False
        with contextlib.suppress(OSError):
            path.touch()  # for readers that look before the first line

    @property
    def num_missing(self) -> int:
        """Lines that are not in the file: they wait or are lost."""
        return len(self._waiting) + self.num_lost

    def append(self, value: Mapping[str, Any]) -> None:
        """Adds a line of JSON; see `write`."""
        self.write(json.dumps(value))

    def write(self, text: str) -> None:
        """Adds a line; it survives the process, though not a power cut, unless the disk is full."""
        line = text.encode() + b"\n"
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self._write()
        while self._waiting_bytes > self._max_waiting_bytes:
            self._waiting_bytes -= len(self._waiting.popleft())
            self.num_lost += 1

    def close(self) -> None:
        """Tries a last time to write what waits; what does not fit is lost, with a warning."""
        self._write()
        if self.num_missing:
            logger.warning("%s: %d lines could not be written", self._path, self.num_missing)
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        while self._waiting:
            try:
                self._write_line(self._waiting[0])
            except OSError as error:
                if not self._has_warned:
                    self._has_warned = True  # first: the file may be the log that this goes to
                    logger.warning("%s: %s; lines wait in memory", self._path, error.strerror)
                return
            self._waiting_bytes -= len(self._waiting.popleft())

    def _write_line(self, line: bytes) -> None:
        """Writes a line whole; of one that does not fit nothing stays behind."""
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)
        written, size = 0, os.fstat(self._file.fileno()).st_size
        try:
            while written < len(line):  # the last bytes before the disk is full are no error yet
                written += self._file.write(line[written:]) or 0
        except OSError:
            file, self._file = self._file, None
            with file:
                if written:
                    os.truncate(file.fileno(), size)
            raise
