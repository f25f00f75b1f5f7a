"""What is examined and what is found: plain values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Args:
        check: what was looked at.
        level: "wrong" keeps runs from working, "warning" makes some of them slow or fail.
        fact: what is there.
        remedy: what to do; empty where all is well.
    """

    check: str
    level: Level
    fact: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined.

    Args:
        folder: working folder, where runs and corpora are to be.
        tracking: MLflow URI; None: a file, which needs no server.
        storage: URI of a folder that all machines see; None: none is used.
        address: of a Ray cluster's dashboard, or of its head; None: clusters are local.
        min_free_bytes: room that a run needs at least.
        timeout_s: longest wait for one check.
    """

    folder: Path
    tracking: str | None = None
    storage: str | None = None
    address: str | None = None
    min_free_bytes: int = 5 * 10**9
    timeout_s: float = 10.0


Check = Callable[[Subject], Sequence[Finding]]
