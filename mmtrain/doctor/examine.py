"""Whether this machine, and what it talks to, can train: a line for each fact, with its remedy.

A check looks at one thing and says ok, warning or wrong. All run at once, each with a bound on its
time: what does not answer is a finding, not a wait. Frameworks are looked at from outside, by their
versions, files and HTTP interfaces; none is imported but torch.
"""

import threading
import time
from collections.abc import Mapping, Sequence

from mmtrain.doctor import machine, software, surroundings
from mmtrain.doctor.findings import Check, Finding, Subject


def examine(subject: Subject, checks: Mapping[str, Check]) -> list[Finding]:
    """All checks, at once; findings in the order of the checks.

    A check that breaks or does not end in time is a finding too. Its thread is left behind.
    """
    found: dict[str, Sequence[Finding]] = {}

    def run(name: str, check: Check) -> None:
        try:
            found[name] = check(subject)
        except Exception as error:  # whatever is broken there is what was asked for
            fact = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            found[name] = [Finding(name, "wrong", fact, "see the message; mend what it names")]

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
    return software.CHECKS | machine.CHECKS | surroundings.CHECKS
