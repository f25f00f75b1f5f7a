"""Files of a checkpoint: where they lie, written whole or not at all, checked when read."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from pipelines.errors import MMTrainError
from pipelines.files import FileReadError, FileWriteError, os_reason, read_retried, write_whole

MANIFEST = "manifest.json"
MAX_JSON_BYTES = 64 * 2**20
FOLDER_NAME = re.compile(r"step-(\d{9})(?:-(\d+))?")


class CheckpointError(MMTrainError):
    """A checkpoint cannot be written, or is not what was written; names the file."""


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """A complete checkpoint. `digest` is the SHA-256 of its manifest, which lists all else."""

    uri: str
    step: int
    digest: str


def open_folder(folder: str | Path) -> tuple[Any, str]:  # fsspec has no types
    """The file system of a path or URI, and the path on it."""
    filesystem, root = fsspec.core.url_to_fs(str(folder))
    return filesystem, root.rstrip("/")


def folder_name(step: int, attempt: int) -> str:
    """Name of a checkpoint's folder; later attempts at a step are newer."""
    return f"step-{step:09d}" + (f"-{attempt}" if attempt else "")


def folder_step(path: str) -> int | None:
    """The step that a folder is named by; None: it has no checkpoint's name."""
    found = FOLDER_NAME.fullmatch(path.rsplit("/", 1)[-1])
    return int(found[1]) if found else None


def folder_names(filesystem: Any, root: str) -> list[str]:
    """Checkpoint folders under `root`, newest first, finished or not.

    Raises:
        FileReadError: `root` is there and cannot be listed.
    """
    filesystem.invalidate_cache()
    try:
        paths = read_retried(lambda: filesystem.ls(root, detail=False), path=root)
    except FileNotFoundError:
        return []
    found = [path.rstrip("/").rsplit("/", 1)[-1] for path in paths]
    names = {name: match for name in found if (match := FOLDER_NAME.fullmatch(name))}
    order = {name: (int(match[1]), int(match[2] or 0)) for name, match in names.items()}
    return sorted(order, key=lambda name: order[name], reverse=True)


def put(filesystem: Any, path: str, data: bytes) -> dict[str, Any]:
    """Writes a file whole or not at all. Returns its facts: size and digest.

    Raises:
        FileWriteError: it cannot be written; nothing of it is left.
    """
    if "file" in filesystem.protocol:
        write_whole(Path(path), data)
    else:
        try:
            filesystem.pipe_file(path, data)  # an object store shows an object when it is complete
        except OSError as error:
            raise FileWriteError(
                f"{path} of {len(data):,} bytes cannot be written: {os_reason(error)}"
            ) from error
    return file_facts(data)


def has_manifest(filesystem: Any, path: str) -> bool:
    """Whether a checkpoint was finished.

    Raises:
        FileReadError: that cannot be told.
    """
    place = f"{path}/{MANIFEST}"
    try:
        read_retried(lambda: filesystem.info(place), path=place)
    except FileNotFoundError:
        return False
    return True


def get_checked(filesystem: Any, path: str, *, facts: Mapping[str, Any]) -> bytes:
    """A file's bytes, if they are those that were written.

    Raises:
        CheckpointError: the file is missing, or of another size or digest.
        FileReadError: it cannot be read.
    """
    size, data = _read(filesystem, path, max_bytes=facts["bytes"])
    if size != facts["bytes"] or file_facts(data) != facts:
        raise CheckpointError(
            f"{path} has changed: {size} bytes of SHA-256 {sha256(data)[:12]}, "
            f"the manifest says {facts['bytes']} bytes of {facts['sha256'][:12]}"
        )
    return data


def get_manifest(filesystem: Any, path: str) -> bytes:
    """The manifest's bytes, unchecked, of a sane size.

    Raises:
        CheckpointError: there is none, or it is too large to be one.
        FileReadError: it cannot be read.
    """
    size, data = _read(filesystem, f"{path}/{MANIFEST}", max_bytes=MAX_JSON_BYTES)
    if size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}/{MANIFEST} is damaged: {size} bytes")
    return data


def _read(filesystem: Any, path: str, *, max_bytes: int) -> tuple[int, bytes]:
    """A plain file's size, and its bytes; of one that is larger than `max_bytes` none are read."""

    def read() -> tuple[int, bytes]:
        found = filesystem.info(path)
        if found["type"] != "file":  # a pipe would be waited for, a device never ends
            raise FileReadError(path, f"it is no file but a {found['type']}")
        size = int(found["size"])
        return size, filesystem.cat_file(path) if size <= max_bytes else b""

    try:
        return read_retried(read, path=path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None


def file_facts(data: bytes) -> dict[str, Any]:
    """Size and digest, as a manifest lists them."""
    return {"bytes": len(data), "sha256": sha256(data)}


def sha256(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def to_json(value: Any) -> bytes:
    """JSON in the one form that a value has here."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
