"""Checkpoints without layout: full tensors by name; what has no manifest does not exist.

A checkpoint is a folder `step-<number>`. Each rank writes its part of the entries in safetensors;
when all have, rank 0 writes `manifest.json`, which lists every file with its size and SHA-256 and
carries the run's progress. Nothing is pickled, and nothing says how many ranks there
were to be: any number of them, any ZeRO stage and any `ep_size` can load it.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from mmtrain.checkpoint_files import (
    MANIFEST,
    SCHEMA,
    CheckpointError,
    file_facts,
    folder_name,
    folder_names,
    from_manifest,
    get_checked,
    get_manifest,
    open_folder,
    put,
    sha256,
    to_json,
    to_manifest,
)
from mmtrain.engines import Engine, ParameterState

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20  # of one file: what a rank holds in memory while it writes or reads


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """A complete checkpoint. `digest` is the SHA-256 of its manifest, which lists all else."""

    uri: str
    step: int
    digest: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: all that a resumed run needs beside the parameters.

    Args:
        step: optimizer steps taken; the next one has this number.
        cursors: global batches taken of each task.
        recipe: the run's recipe as JSON.
        run_id: MLflow run that a resumed run goes on in.
        mixing: what an adaptive schedule knows, a `Mixing` as JSON; else empty.
    """

    step: int
    cursors: Mapping[str, int] = field(default_factory=dict)
    recipe: str = ""
    run_id: str = ""
    mixing: Mapping[str, Any] = field(default_factory=dict)


# ---- saving


def save(
    folder: str | Path, *, engine: Engine, progress: Progress, keep: int | None = None
) -> CheckpointRef:
    """Writes a checkpoint under `folder`, which all ranks see. All ranks call this together.

    Args:
        folder: of all checkpoints of the run: a path, or a URI that fsspec opens.
        engine: whose parameters, moments and step counts are saved.
        progress: saved in the manifest.
        keep: newest checkpoints to keep, this one counted; older ones go. None: all stay.

    Raises:
        CheckpointError: a rank could not write; no manifest was written, so nothing was published.
    """
    filesystem, root = open_folder(folder)
    name = _new_name(filesystem, root, step=progress.step, engine=engine)
    path = f"{root}/{name}"
    _together(engine, lambda: filesystem.makedirs(path, exist_ok=True), path=path)
    _save_part(filesystem, path, engine=engine)
    digest = _publish(filesystem, path, engine=engine, progress=progress)
    if engine.rank == 0:
        if keep is not None:
            _remove_old(filesystem, root, keep=keep)
        logger.info("saved %s", path)
    return CheckpointRef(filesystem.unstrip_protocol(path), progress.step, digest)


def _new_name(filesystem: Any, root: str, *, step: int, engine: Engine) -> str:
    """A folder name that is not taken: a second save of a step never touches the first."""
    attempt = 0
    while engine.rank == 0 and filesystem.exists(f"{root}/{folder_name(step, attempt)}"):
        attempt += 1
    return folder_name(step, int(_from_rank_0(engine, torch.tensor([attempt]))))


def _save_part(filesystem: Any, path: str, *, engine: Engine) -> None:
    """This rank's entries in files of at most SHARD_BYTES or one entry, and their index."""
    rank, files = engine.rank, {}
    failure: OSError | None = None
    shards = _shards(engine.parameter_states())
    for number, (tensors, steps) in enumerate(shards):
        if failure is not None:
            continue  # the other ranks' entries need this rank to the end
        try:
            data = save_tensors(tensors, metadata={"steps": json.dumps(steps)})
            name = f"weights-{rank:05d}-{number:05d}.safetensors"
            files[name] = put(filesystem, f"{path}/{name}", data)
        except OSError as error:
            failure = error

    def finish() -> None:
        if failure is not None:
            raise failure
        name = f"rng-{rank:05d}.safetensors"
        files[name] = put(filesystem, f"{path}/{name}", save_tensors(_rng_states(engine)))
        put(filesystem, f"{path}/part-{rank:05d}.json", to_json({"files": files}))

    _together(engine, finish, path=path)


def _shards(
    states: Iterator[ParameterState],
) -> Iterator[tuple[dict[str, Tensor], dict[str, int]]]:
    """States gathered until they fill a file: tensors by "<entry>/<key>", steps by entry."""
    tensors: dict[str, Tensor] = {}
    steps: dict[str, int] = {}
    size = 0
    for state in states:
        added = {f"{state.name}/{key}": value for key, value in state.tensors.items()}
        added_size = sum(value.nbytes for value in added.values())
        if tensors and size + added_size > SHARD_BYTES:
            yield tensors, steps
            tensors, steps, size = {}, {}, 0
        tensors |= added
        steps[state.name] = state.step
        size += added_size
    if tensors:
        yield tensors, steps


def _publish(filesystem: Any, path: str, *, engine: Engine, progress: Progress) -> str:
    """Rank 0 writes the manifest from all ranks' indexes. Returns its digest, on all ranks."""
    digest = bytearray(32)

    def write() -> None:
        if engine.rank != 0:
            return
        files: dict[str, Any] = {}
        for rank in range(engine.world_size):
            name = f"part-{rank:05d}.json"
            data = filesystem.cat_file(f"{path}/{name}")
            files[name] = file_facts(data)
            files |= json.loads(data)["files"]
        body = {
            "schema": SCHEMA,
            "world_size": engine.world_size,
            "progress": asdict(progress),
            "files": files,
        }
        manifest = to_manifest(body)
        put(filesystem, f"{path}/{MANIFEST}", manifest)
        digest[:] = hashlib.sha256(manifest).digest()

    _together(engine, write, path=path)
    received = _from_rank_0(engine, torch.tensor(list(digest)))
    return bytes(received.tolist()).hex()


def _rng_states(engine: Engine) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if engine.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(engine.device)
    return states


def _remove_old(filesystem: Any, root: str, *, keep: int) -> None:
    """Removes all but the newest `keep` complete checkpoints, and torn ones older than those."""
    kept = 0
    for name in folder_names(filesystem, root):
        if kept >= keep:
            path = f"{root}/{name}"
            if filesystem.exists(f"{path}/{MANIFEST}"):
                filesystem.rm_file(f"{path}/{MANIFEST}")  # first: never half there
            filesystem.rm(path, recursive=True)
        elif filesystem.exists(f"{root}/{name}/{MANIFEST}"):
            kept += 1


# ---- finding and loading


def latest(folder: str | Path) -> CheckpointRef | None:
    """The newest checkpoint whose every file is as it was written; None if there is none.

    One that has no manifest was never finished, and is passed over; one that is damaged is passed
    over with a warning that names the file.
    """
    filesystem, root = open_folder(folder)
    for name in folder_names(filesystem, root):
        path = f"{root}/{name}"
        if not filesystem.exists(f"{path}/{MANIFEST}"):
            logger.warning(
                "%s has no %s: it was not finished; trying the one before", path, MANIFEST
            )
            continue
        try:
            data = get_manifest(filesystem, path)
            step = from_manifest(data, path=path)["progress"]["step"]
            ref = CheckpointRef(filesystem.unstrip_protocol(path), step, sha256(data))
            verify(ref)
        except CheckpointError as error:
            logger.warning("%s; trying the one before", error)
        else:
            return ref
    return None


def verify(ref: CheckpointRef) -> None:
    """Reads all files of a checkpoint and compares them with its manifest.

    Raises:
        CheckpointError: names the file that is missing or changed.
    """
    for name, facts in _read_manifest(ref)["files"].items():
        _read_file(ref, name, facts=facts)


def read_progress(ref: CheckpointRef) -> Progress:
    """The progress that the checkpoint was saved with.

    Raises:
        CheckpointError: the manifest is missing or changed.
    """
    return Progress(**_read_manifest(ref)["progress"])


def states(ref: CheckpointRef) -> Iterator[ParameterState]:
    """All entries of a checkpoint, file by file; each file is checked before it is used.

    Raises:
        CheckpointError: names the file that is missing or changed.
    """
    for name, facts in _read_manifest(ref)["files"].items():
        if name.startswith("weights-"):
            yield from _states_of_file(_read_file(ref, name, facts=facts), path=f"{ref.uri}/{name}")


def restore(ref: CheckpointRef, *, engine: Engine) -> Progress:
    """Loads parameters, moments, step counts and, on as many ranks as saved it, random states.

    All ranks call this together.

    Raises:
        CheckpointError: a file is missing or changed.
        EngineError: the checkpoint is of another model.
    """
    manifest = _read_manifest(ref)
    engine.load_parameter_states(states(ref))
    if manifest["world_size"] == engine.world_size:
        name = f"rng-{engine.rank:05d}.safetensors"
        saved = load_tensors(_read_file(ref, name, facts=manifest["files"][name]))
        torch.set_rng_state(saved["cpu"])
        if "cuda" in saved and engine.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda"], engine.device)
    return Progress(**manifest["progress"])


def _states_of_file(data: bytes, *, path: str) -> Iterator[ParameterState]:
    try:
        tensors = load_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        steps = json.loads(header["__metadata__"]["steps"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a checkpoint's file: {error}") from error
    by_entry: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        entry, _, key = name.rpartition("/")
        by_entry.setdefault(entry, {})[key] = tensor
    for entry, held in by_entry.items():
        yield ParameterState(entry, held, steps[entry])


def _read_manifest(ref: CheckpointRef) -> dict[str, Any]:
    filesystem, path = open_folder(ref.uri)
    data = get_manifest(filesystem, path)
    if sha256(data) != ref.digest:
        raise CheckpointError(f"{path}/{MANIFEST} has changed since it was opened")
    return from_manifest(data, path=path)


def _read_file(ref: CheckpointRef, name: str, *, facts: Mapping[str, Any]) -> bytes:
    filesystem, path = open_folder(ref.uri)
    return get_checked(filesystem, f"{path}/{name}", facts=facts)


# ---- ranks


def _together(engine: Engine, act: Callable[[], object], *, path: str) -> None:
    """Every rank acts; if one fails to write, all raise. No rank is left waiting.

    Raises:
        CheckpointError: this rank, or another one, could not write.
    """
    failure: OSError | None = None
    try:
        act()
    except OSError as error:
        failure = error
    if engine.world_size > 1:
        failed = torch.tensor([failure is not None], dtype=torch.int32, device=engine.device)
        dist.all_reduce(failed)
        if failure is None and int(failed):
            raise CheckpointError(f"{path}: another rank could not write its part; see its log")
    if failure is not None:
        raise CheckpointError(
            f"{path}: rank {engine.rank} could not write: {failure}; make room or choose another "
            f"folder with --out"
        ) from failure


def _from_rank_0(engine: Engine, value: Tensor) -> Tensor:
    """Rank 0's value, on all ranks."""
    if engine.world_size == 1:
        return value
    shared = value.to(engine.device)
    dist.broadcast(shared, src=0)
    return shared.cpu()
