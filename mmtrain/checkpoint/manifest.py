"""A checkpoint's manifest: what it must say, and what makes it one that can be trusted.

The manifest proves itself: it holds the digest of its own body and must be, byte for byte, what
writing that body gives. A right digest is no proof that all is there, so the body is held against
what every save writes: all keys, a part of each rank, the step that the folder is named by.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmtrain.checkpoint.files import MANIFEST, CheckpointError, folder_step, sha256, to_json
from pipelines.errors import first_problem

SCHEMA = 2
OLDER = (1,)  # had random states, and neither the number of tensors nor the corpora's digests
FILE_NAME = re.compile(r"(?P<kind>weights|rng|part)-(?P<rank>\d{5})(?:-(?P<number>\d{5}))?\.\w+")
SUFFIX = {"weights": ".safetensors", "rng": ".safetensors", "part": ".json"}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_by_name=True)


class Progress(_Strict):
    """How far a run is: all that a resumed run needs beside the parameters.

    Args:
        step: optimizer steps taken; the next one has this number.
        cursors: global batches taken of each task.
        recipe_json: the run's recipe; the manifest calls it `recipe`.
        run_id: MLflow run that a resumed run goes on in.
        mixing: what an adaptive schedule knows, a `Mixing` as JSON; else empty.
        corpora: digest of the training split that each task's cursor counts in.
    """

    step: int
    cursors: Mapping[str, int] = {}
    recipe_json: str = Field(default="", validation_alias="recipe", serialization_alias="recipe")
    run_id: str = ""
    mixing: Mapping[str, Any] = {}
    corpora: Mapping[str, str] = {}


class FileFacts(_Strict):
    """A file as it was written."""

    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class PartIndex(_Strict):
    """What one rank wrote."""

    files: dict[str, FileFacts]
    tensors: int | None = Field(default=None, ge=0, description="In the files; None: schema 1.")


class CheckpointManifest(_Strict):
    """All of a checkpoint: every file with its facts, and the run's progress."""

    format: int = Field(alias="schema")
    world_size: int = Field(
        ge=1, le=99_999, description="Ranks that wrote it; any number can load it."
    )
    progress: Progress
    files: dict[str, FileFacts]
    tensors: int | None = Field(default=None, ge=1, description="Of all ranks; None: schema 1.")

    def weights(self) -> list[str]:
        """Names of the files that hold tensors, in order."""
        return [name for name in self.files if name.startswith("weights-")]

    def check_part(self, index: PartIndex, name: str, *, path: str) -> None:
        """A rank's index must list the same files of that rank.

        Raises:
            CheckpointError: it lists others; names the first.
        """
        rank = _rank_of(name)
        listed = {
            file: facts
            for file, facts in self.files.items()
            if _rank_of(file) == rank and not file.startswith("part-")
        }
        if index.files != listed:
            files = sorted({*listed, *index.files})
            odd = [file for file in files if listed.get(file) != index.files.get(file)]
            raise CheckpointError(f"{path}/{MANIFEST} and its {name} are at odds over {odd[0]}")


def part_name(rank: int) -> str:
    """Name of a rank's index."""
    return f"part-{rank:05d}.json"


def weights_name(rank: int, number: int) -> str:
    """Name of a rank's n-th file of tensors."""
    return f"weights-{rank:05d}-{number:05d}.safetensors"


def to_manifest(body: Mapping[str, Any]) -> bytes:
    """The manifest of a body, as `from_manifest` reads it."""
    return to_json({"body": body, "sha256": sha256(to_json(body))})


def from_manifest(data: bytes, *, path: str) -> CheckpointManifest:
    """A manifest, checked: its own digest, its schema, and that it is complete.

    Args:
        data: bytes of the file.
        path: of the checkpoint's folder, whose name must fit.

    Raises:
        CheckpointError: one of these is wrong; `path` is named.
    """
    try:
        body: dict[str, Any] = json.loads(data)["body"]
        whole = data == to_manifest(body)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole, body = False, {}
    if not whole:
        raise CheckpointError(f"{path}/{MANIFEST} is damaged: its digest does not fit its text")
    schema = body.get("schema")
    if schema not in (SCHEMA, *OLDER):
        raise CheckpointError(f"{path}/{MANIFEST} has schema {schema}, this is {SCHEMA}")
    try:
        manifest = CheckpointManifest.model_validate_json(to_json(body))
    except ValidationError as error:
        raise CheckpointError(f"{path}/{MANIFEST} is damaged: {first_problem(error)}") from None
    if problem := _problem(manifest, step=folder_step(path)):
        raise CheckpointError(f"{path}/{MANIFEST} {problem}")
    return manifest


def from_part(data: bytes, *, path: str) -> PartIndex:
    """A rank's index.

    Raises:
        CheckpointError: it is not one; `path` is named.
    """
    try:
        return PartIndex.model_validate_json(data)
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged: {first_problem(error)}") from None


def _problem(manifest: CheckpointManifest, *, step: int | None) -> str | None:
    """What a manifest of a right digest lacks or has too much of."""
    for name in manifest.files:
        found = FILE_NAME.fullmatch(name)
        if not found or not name.endswith(SUFFIX[found["kind"]]):
            return f"lists {name!r}, which no checkpoint holds"
    if step != manifest.progress.step:
        return f"is of step {manifest.progress.step}, its folder's name says step {step}"
    if manifest.format == SCHEMA and manifest.tensors is None:
        return "lacks the number of its tensors"
    ranks = range(manifest.world_size)
    missing = [part_name(rank) for rank in ranks if part_name(rank) not in manifest.files]
    missing += _gaps(manifest.weights()) or ([] if manifest.weights() else [weights_name(0, 0)])
    if missing:
        return f"lists no {missing[0]}"
    strange = [name for name in manifest.files if _rank_of(name) not in ranks]
    return f"lists {strange[0]}, of a rank that there was not" if strange else None


def _gaps(weights: Iterable[str]) -> list[str]:
    """Names that lack among files that are numbered from 0 on for each rank."""
    numbers: dict[int, set[int]] = {}
    for name in weights:
        found = FILE_NAME.fullmatch(name)
        assert found is not None
        numbers.setdefault(int(found["rank"]), set()).add(int(found["number"] or 0))
    return [
        weights_name(rank, number)
        for rank, held in numbers.items()
        for number in range(max(held))
        if number not in held
    ]


def _rank_of(name: str) -> int:
    return int(name.split("-")[1][:5])
