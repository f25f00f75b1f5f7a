"""Checkpoints without layout: full tensors by name; what has no manifest does not exist.

A checkpoint is a folder `step-<number>`. Each rank writes its part of the entries in safetensors;
when all have, rank 0 writes `manifest.json`, which lists every file with its size and SHA-256 and
carries the run's progress. Nothing is pickled, and nothing says how many ranks there
were to be: any number of them, any ZeRO stage and any `ep_size` can load it.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from mmtrain.checkpoint.files import (
    MANIFEST,
    CheckpointError,
    CheckpointRef,
    file_facts,
    folder_name,
    folder_names,
    get_manifest,
    has_manifest,
    open_folder,
    put,
    sha256,
    to_json,
)
from mmtrain.checkpoint.manifest import (
    SCHEMA,
    Progress,
    from_part,
    part_name,
    to_manifest,
    weights_name,
)
from mmtrain.checkpoint.read import check_all, open_manifest, read_states
from mmtrain.checkpoint.together import Member, from_rank_0, read_by_all, same_on_all, together
from mmtrain.engines import Engine, ParameterState
from mmtrain.engines.pieces import average_buffers
from pipelines.errors import MMTrainError

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20  # of one file: what a rank holds in memory while it writes or reads


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
        CheckpointError: a rank could not write; nothing was published, and what was written goes.
    """
    filesystem, root = open_folder(folder)
    name = _new_name(filesystem, root, step=progress.step, engine=engine)
    path = f"{root}/{name}"
    try:
        together(engine, lambda: filesystem.makedirs(path, exist_ok=True), doing=f"make {path}")
        _save_part(filesystem, path, engine=engine)
        digest = _publish(filesystem, path, engine=engine, progress=progress)
    except CheckpointError:
        if engine.rank == 0:  # every rank has stopped writing; on a full disk the room is needed
            _remove(filesystem, path)
        raise
    if engine.world_size > 1:  # as a resumed run has them on every rank: both are then one run
        average_buffers(engine.model)
    if engine.rank == 0:
        if keep is not None:
            _remove_others(filesystem, root, keep=keep, newest=name)
        logger.info("saved %s", path)
    return CheckpointRef(filesystem.unstrip_protocol(path), progress.step, digest)


def _new_name(filesystem: Any, root: str, *, step: int, engine: Engine) -> str:
    """A folder name that is not taken: a second save of a step never touches the first."""
    attempt = 0
    while engine.rank == 0 and filesystem.exists(f"{root}/{folder_name(step, attempt)}"):
        attempt += 1
    return folder_name(step, from_rank_0(engine, attempt))


def _save_part(filesystem: Any, path: str, *, engine: Engine) -> None:
    """This rank's entries in files of at most SHARD_BYTES or one entry, and their index."""
    rank, files, num_tensors = engine.rank, {}, 0
    failure: OSError | MMTrainError | None = None
    shards = _shards(engine.parameter_states())
    for number, (tensors, steps) in enumerate(shards):
        if failure is not None:
            continue  # the other ranks' entries need this rank to the end
        try:
            data = save_tensors(tensors, metadata={"steps": json.dumps(steps)})
            name = weights_name(rank, number)
            files[name] = put(filesystem, f"{path}/{name}", data)
            num_tensors += len(tensors)
        except (OSError, MMTrainError) as error:
            failure = error

    def finish() -> None:
        if failure is not None:
            raise failure
        index = to_json({"files": files, "tensors": num_tensors})
        put(filesystem, f"{path}/{part_name(rank)}", index)

    together(engine, finish, doing=f"write its part of {path}")


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

    def write() -> str:
        if engine.rank != 0:
            return ""
        files: dict[str, Any] = {}
        num_tensors = 0
        for rank in range(engine.world_size):
            name = part_name(rank)
            data = filesystem.cat_file(f"{path}/{name}")
            index = from_part(data, path=f"{path}/{name}")
            files[name] = file_facts(data)
            files |= {file: facts.model_dump() for file, facts in index.files.items()}
            num_tensors += index.tensors or 0
        body = {
            "schema": SCHEMA,
            "world_size": engine.world_size,
            "progress": progress.model_dump(mode="json", by_alias=True),
            "files": files,
            "tensors": num_tensors,
        }
        manifest = to_manifest(body)
        put(filesystem, f"{path}/{MANIFEST}", manifest)
        return sha256(manifest)

    return from_rank_0(engine, together(engine, write, doing=f"publish {path}"))


def _remove_others(filesystem: Any, root: str, *, keep: int, newest: str) -> None:
    """Leaves `newest` and the finished checkpoints before it, `keep` in all.

    Those after `newest` were passed over when the run was resumed: they could not be used, and
    what the run has done since is not in them.
    """
    names = folder_names(filesystem, root)
    before = names[names.index(newest) :]
    finished = [name for name in before if filesystem.exists(f"{root}/{name}/{MANIFEST}")]
    for name in names:
        if name not in finished[:keep]:
            if name not in before:
                logger.warning("removing %s/%s: the run went on from before it", root, name)
            _remove(filesystem, f"{root}/{name}")


def _remove(filesystem: Any, path: str) -> None:
    """Removes a checkpoint, its manifest first: it is never half there. What stays is told."""
    try:
        if filesystem.exists(f"{path}/{MANIFEST}"):
            filesystem.rm_file(f"{path}/{MANIFEST}")
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)
    except OSError as error:
        logger.warning("%s could not be removed: %s", path, error)


# ---- finding and loading


def latest(folder: str | Path) -> CheckpointRef | None:
    """The newest checkpoint whose every file is as it was written; None if none was finished.

    One that has no manifest was never finished, and is passed over; so is one that is damaged or
    cannot be read, each with a warning that says why.

    Raises:
        CheckpointError: there are finished ones and none can be used; a run that began anew
            beside them would be taken for what they were of.
        FileReadError: the folder cannot be listed.
    """
    filesystem, root = open_folder(folder)
    failures: list[MMTrainError] = []
    for name in folder_names(filesystem, root):
        path = f"{root}/{name}"
        try:
            if has_manifest(filesystem, path):
                return check_all(filesystem, path)
            logger.warning(
                "%s has no %s: it was not finished; trying the one before", path, MANIFEST
            )
        except MMTrainError as error:
            failures.append(error)
            logger.warning("%s is passed over: %s; trying the one before", path, error)
    if failures:
        raise CheckpointError(
            f"no checkpoint in {root} can be used; the newest: {failures[0]}. Mend that, or give "
            "another --out to begin anew"
        )
    return None


def agree(folder: str | Path, *, member: Member) -> CheckpointRef | None:
    """The newest checkpoint in the eyes of rank 0, the same on all ranks, which call together.

    Rank 0 reads and checks all files; the other ranks read the manifest alone.

    Args:
        folder: of all checkpoints of the run, as this rank sees it.
        member: this process.

    Raises:
        CheckpointError: on all ranks: rank 0 finds none that can be used, or another rank sees
            something else in its place; names rank, step and both digests.
    """
    chosen = from_rank_0(
        member,
        together(
            member, lambda: latest(folder) if member.rank == 0 else None, doing="find a checkpoint"
        ),
    )
    if chosen is None:
        return None
    filesystem, root = open_folder(folder)
    path = f"{root}/{chosen.uri.rsplit('/', 1)[-1]}"
    same_on_all(
        member,
        lambda: sha256(get_manifest(filesystem, path)),
        expected=chosen.digest,
        what=f"the {MANIFEST} of step {chosen.step} in {root}",
    )
    return CheckpointRef(filesystem.unstrip_protocol(path), chosen.step, chosen.digest)


def read_progress(ref: CheckpointRef) -> Progress:
    """The progress that the checkpoint was saved with.

    Raises:
        CheckpointError: the manifest is missing or changed.
    """
    return open_manifest(ref).progress


def states(ref: CheckpointRef) -> Iterator[ParameterState]:
    """All entries of a checkpoint, file by file; each file is checked before it is used.

    Raises:
        CheckpointError: names the file that is missing or changed.
        FileReadError: a file cannot be read.
    """
    yield from read_states(ref, open_manifest(ref))


def restore(ref: CheckpointRef, *, engine: Engine) -> Progress:
    """Loads parameters, moments and step counts. All ranks call this together.

    Nothing random is restored: what a step draws is keyed by (seed, step, rank), see `ranks.py`.

    Raises:
        CheckpointError: on all ranks: a rank finds a file missing or changed, or cannot read it.
        EngineError: the checkpoint is of another model.
    """
    doing = f"read step {ref.step}, whose manifest has digest {ref.digest[:12]}"
    manifest = together(engine, lambda: open_manifest(ref), doing=doing)
    engine.load_parameter_states(read_by_all(engine, read_states(ref, manifest), doing=doing))
    return manifest.progress
