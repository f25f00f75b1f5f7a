"""Ranks that write or read a checkpoint together: if one fails, all raise and none waits.

Every message crosses the ranks, so each rank's error names the rank that failed and why.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar, cast

import torch.distributed as dist

from mmtrain.checkpoint.files import CheckpointError
from pipelines.errors import MMTrainError

T = TypeVar("T")


class Member(Protocol):
    """A process of those that train together: an engine, or `Ranks`."""

    @property
    def rank(self) -> int:
        """Its number."""
        ...

    @property
    def world_size(self) -> int:
        """How many there are."""
        ...


def together(member: Member, act: Callable[[], T], *, doing: str) -> T:
    """Every rank acts; returns what `act` does. If one fails, all raise.

    Args:
        member: this process.
        act: what to do; its errors of the system and of this project's kinds are told to all.
        doing: what was to be done, for the message: "write step-000000004".

    Raises:
        CheckpointError: this rank, or another one, could not; names it and why.
    """
    result, cause = None, None
    try:
        result = act()
    except (OSError, ValueError, MMTrainError) as error:
        cause = error
    _raise_failures(member, cause, doing=doing)
    return cast(T, result)


def read_by_all(member: Member, items: Iterable[T], *, doing: str) -> Iterator[T]:
    """Hands `items` on; at their end every rank has read all of its own, or all ranks raise.

    To be exhausted before the next collective of any other kind.

    Raises:
        CheckpointError: this rank, or another one, could not read; names it and why.
    """
    cause = None
    try:
        yield from items
    except MMTrainError as error:
        cause = error
    _raise_failures(member, cause, doing=doing)


def same_on_all(member: Member, digest: Callable[[], str], *, expected: str, what: str) -> None:
    """Every rank must see what rank 0 sees.

    Args:
        member: this process.
        digest: SHA-256 of what this rank sees.
        expected: rank 0's.
        what: was read, for the message: "the manifest of step 4 in /runs/a".

    Raises:
        CheckpointError: on all ranks, if one sees another or cannot read it; names both.
    """
    try:
        view = (digest(), "")
    except MMTrainError as error:
        view = ("none", f" ({error})")
    for rank, (found, reason) in enumerate(gather(member, view)):
        if found != expected:
            raise CheckpointError(
                f"rank {rank} sees another checkpoint than rank 0: {what} has digest {found[:12]} "
                f"there{reason}, {expected[:12]} on rank 0; all machines must see one --out"
            )


def _raise_failures(member: Member, cause: Exception | None, *, doing: str) -> None:
    """Raises on all ranks if any has failed: for its own failure, else for the first other's."""
    message = (str(cause) or type(cause).__name__) if cause else ""
    failed = {rank: told for rank, told in enumerate(gather(member, message)) if told}
    if cause is not None:
        raise CheckpointError(f"rank {member.rank} could not {doing}: {message}") from cause
    for rank, told in failed.items():
        raise CheckpointError(f"another rank, {rank}, could not {doing}: {told}")


def gather(member: Member, value: T) -> list[T]:
    """Every rank's value, by rank; on all ranks."""
    values: list[Any] = [value] * member.world_size
    if member.world_size > 1:
        dist.all_gather_object(values, value)
    return values


def from_rank_0(member: Member, value: T) -> T:
    """Rank 0's value, on all ranks."""
    values: list[Any] = [value]
    if member.world_size > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]
