"""One checkpoint, read: every file is compared with the manifest before anything of it is used."""

import json
from collections.abc import Iterator
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from mmtrain.checkpoint.files import (
    MANIFEST,
    CheckpointError,
    CheckpointRef,
    get_checked,
    get_manifest,
    open_folder,
    sha256,
)
from mmtrain.checkpoint.manifest import CheckpointManifest, from_manifest, from_part
from mmtrain.engines import ParameterState


def check_all(filesystem: Any, path: str) -> CheckpointRef:
    """The checkpoint at a path, every file of it read once and compared.

    Raises:
        CheckpointError: names the file that is missing or changed, or what the manifest lacks.
        FileReadError: a file cannot be read.
    """
    data = get_manifest(filesystem, path)
    manifest = from_manifest(data, path=path)
    num_tensors = 0
    for name in manifest.files:
        contents = _read(filesystem, path, manifest, name)
        if name.startswith("weights-"):
            num_tensors += len(_header(contents, path=f"{path}/{name}").keys() - {"__metadata__"})
        elif name.startswith("part-"):
            manifest.check_part(from_part(contents, path=f"{path}/{name}"), name, path=path)
    if manifest.tensors not in (None, num_tensors):
        raise CheckpointError(
            f"{path}: its files hold {num_tensors} tensors, {MANIFEST} says {manifest.tensors}"
        )
    return CheckpointRef(filesystem.unstrip_protocol(path), manifest.progress.step, sha256(data))


def open_manifest(ref: CheckpointRef) -> CheckpointManifest:
    """The manifest of a checkpoint that was found before.

    Raises:
        CheckpointError: it is missing or another one.
        FileReadError: it cannot be read.
    """
    filesystem, path = open_folder(ref.uri)
    data = get_manifest(filesystem, path)
    if sha256(data) != ref.digest:
        raise CheckpointError(
            f"{path}/{MANIFEST} has changed since it was opened: its digest is "
            f"{sha256(data)[:12]}, it was {ref.digest[:12]}"
        )
    return from_manifest(data, path=path)


def read_states(ref: CheckpointRef, manifest: CheckpointManifest) -> Iterator[ParameterState]:
    """All entries of a checkpoint, file by file, each file read once.

    Raises:
        CheckpointError: names the file that is missing or changed.
        FileReadError: a file cannot be read.
    """
    filesystem, path = open_folder(ref.uri)
    for name in manifest.weights():
        data = _read(filesystem, path, manifest, name)
        yield from _states_of_file(data, path=f"{path}/{name}")


def _states_of_file(data: bytes, *, path: str) -> list[ParameterState]:
    by_entry: dict[str, dict[str, Tensor]] = {}
    try:
        steps = json.loads(_header(data, path=path)["__metadata__"]["steps"])
        for name, tensor in load_tensors(data).items():
            entry, _, key = name.rpartition("/")
            by_entry.setdefault(entry, {})[key] = tensor
        return [ParameterState(entry, held, steps[entry]) for entry, held in by_entry.items()]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint's file: {error}") from error


def _header(data: bytes, *, path: str) -> dict[str, Any]:
    """The header of a safetensors file: its tensors by name, and "__metadata__"."""
    try:
        return {} | json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a checkpoint's file: {error}") from error


def _read(filesystem: Any, path: str, manifest: CheckpointManifest, name: str) -> bytes:
    return get_checked(filesystem, f"{path}/{name}", facts=manifest.files[name].model_dump())
