"""Whether this machine, and what it talks to, can train: a line for each fact, with its remedy.

A check looks at one thing and says ok, warning or wrong. All run at once, each with a bound on its
time: what does not answer is a finding, not a wait. Frameworks are looked at from outside, by their
versions, files and HTTP interfaces; none is imported but torch.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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

    def to_dict(self) -> dict[str, str]:
        """As JSON holds it."""
        return asdict(self)


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


def examine(subject: Subject, checks: Mapping[str, Check]) -> list[Finding]:
    """All checks, at once; findings in the order of the checks.

    A check that breaks or does not end in time is a finding too. Its thread is left behind.
    """
    found: dict[str, Sequence[Finding]] = {}

    def run(name: str, check: Check) -> None:
        try:
            found[name] = check(subject)
        except Exception as error:  # whatever is broken there is what was asked for
            said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            found[name] = [Finding(name, "wrong", said, "see the message; mend what it names")]

    threads = {
        name: threading.Thread(target=run, args=(name, check), daemon=True)
        for name, check in checks.items()
    }
    for thread in threads.values():
        thread.start()
    ends = time.monotonic() + subject.timeout_s
    for thread in threads.values():
        thread.join(max(0.0, ends - time.monotonic()))
    late = f"no answer within {subject.timeout_s:g} s"
    remedy = "see whether it hangs, or give it longer with --timeout"
    return [
        finding
        for name in checks
        for finding in found.get(name, [Finding(name, "wrong", late, remedy)])
    ]


def is_well(findings: Sequence[Finding]) -> bool:
    """Whether nothing is wrong; warnings are allowed."""
    return all(finding.level != "wrong" for finding in findings)


def all_checks() -> dict[str, Check]:
    """The checks there are, by name, in the order in which they are told."""
    from mmtrain.doctor import machine, software, surroundings

    modules = (software, machine, surroundings)
    return {name: check for module in modules for name, check in module.CHECKS.items()}
