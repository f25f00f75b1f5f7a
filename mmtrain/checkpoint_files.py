"""Files of a checkpoint: written whole or not at all, and checked when they are read.

The manifest proves itself: it holds the digest of its own body and must be, byte for byte, what
writing that body gives. All other files are proved by the manifest.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec

from pipelines.errors import MMTrainError

SCHEMA = 1
MANIFEST = "manifest.json"
MAX_JSON_BYTES = 64 * 2**20
FOLDER_NAME = re.compile(r"step-(\d{9})(?:-(\d+))?")
FILE_NAME = re.compile(r"(weights|rng|part)-\d{5}(-\d{5})?\.(safetensors|json)")


class CheckpointError(MMTrainError):
    """A checkpoint cannot be written, or is not what was written; names the file."""


def open_folder(folder: str | Path) -> tuple[Any, str]:  # fsspec has no types
    """The file system of a path or URI, and the path on it."""
    filesystem, root = fsspec.core.url_to_fs(str(folder))
    return filesystem, root.rstrip("/")


def folder_name(step: int, attempt: int) -> str:
    """Name of a checkpoint's folder; later attempts at a step are newer."""
    return f"step-{step:09d}" + (f"-{attempt}" if attempt else "")


def folder_names(filesystem: Any, root: str) -> list[str]:
    """Checkpoint folders under `root`, newest first, finished or not."""
    filesystem.invalidate_cache()
    if not filesystem.exists(root):
        return []
    found = [path.rstrip("/").rsplit("/", 1)[-1] for path in filesystem.ls(root, detail=False)]
    names = {name: match for name in found if (match := FOLDER_NAME.fullmatch(name))}
    order = {name: (int(match[1]), int(match[2] or 0)) for name, match in names.items()}
    return sorted(order, key=lambda name: order[name], reverse=True)


def put(filesystem: Any, path: str, data: bytes) -> dict[str, Any]:
    """Writes a file whole or not at all. Returns its facts: size and digest."""
    if "file" in filesystem.protocol:
        _write_local(Path(path), data)
    else:
        filesystem.pipe_file(path, data)  # an object store shows an object when it is complete
    return file_facts(data)


def _write_local(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else a power cut may lose the name
    finally:
        os.close(folder)


def get_checked(filesystem: Any, path: str, *, facts: Mapping[str, Any]) -> bytes:
    """A file's bytes, if they are those that were written.

    Raises:
        CheckpointError: the file is missing, or of another size or digest.
    """
    try:
        size = filesystem.size(path)
        data = filesystem.cat_file(path) if size == facts["bytes"] else b""
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
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
    """
    try:
        size = filesystem.size(f"{path}/{MANIFEST}")
    except FileNotFoundError:
        raise CheckpointError(f"{path}/{MANIFEST} is missing: it was not finished") from None
    if size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}/{MANIFEST} is damaged: {size} bytes")
    return filesystem.cat_file(f"{path}/{MANIFEST}")


def to_manifest(body: Mapping[str, Any]) -> bytes:
    """The manifest of a body, as `from_manifest` reads it."""
    return to_json({"body": body, "sha256": sha256(to_json(body))})


def from_manifest(data: bytes, *, path: str) -> dict[str, Any]:
    """The body of a manifest, checked: its own digest, its schema, and the names in it.

    Raises:
        CheckpointError: one of these is wrong; `path` is named.
    """
    try:
        outer = json.loads(data)
        body: dict[str, Any] = outer["body"]
        whole = data == to_manifest(body)
    except (ValueError, KeyError, TypeError):
        whole, body = False, {}
    if not whole:
        raise CheckpointError(f"{path}/{MANIFEST} is damaged: its digest does not fit its text")
    if body["schema"] != SCHEMA:
        raise CheckpointError(f"{path}/{MANIFEST} has schema {body['schema']}, this is {SCHEMA}")
    for name in body["files"]:
        if not FILE_NAME.fullmatch(name):
            raise CheckpointError(f"{path}/{MANIFEST} lists {name!r}, which no checkpoint holds")
    return body


def file_facts(data: bytes) -> dict[str, Any]:
    """Size and digest, as a manifest lists them."""
    return {"bytes": len(data), "sha256": sha256(data)}


def sha256(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def to_json(value: Any) -> bytes:
    """JSON in the one form that a value has here."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
