"""Errors that are the user's to mend: each names the cause, the value and the remedy.

The command line prints them without a traceback and exits non-zero. Constructor arguments go to
`super()`, so that an error survives the pickling between Ray's processes.
"""

import difflib

from pydantic import BaseModel, ValidationError


class MMTrainError(Exception):
    """Base of all errors that a user can mend; anything else that escapes is our bug."""


class UnknownNameError(MMTrainError):
    """A name was given that nothing has; the message lists the nearest right ones."""

    def __init__(self, kind: str, name: str, known: tuple[str, ...]) -> None:
        super().__init__(kind, name, known)
        self.kind, self.name, self.known = kind, name, known

    def __str__(self) -> str:
        near = difflib.get_close_matches(self.name, self.known, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(self.known)}"
        return f"no {self.kind} {self.name!r}; {hint}"


class BadExampleError(MMTrainError):
    """One raw example cannot be used; `build` quarantines it with this reason."""


class BuildError(MMTrainError):
    """A corpus could not be built; nothing half-written is left behind."""


class CorpusError(MMTrainError):
    """A built corpus is missing, incomplete or no longer what it was when a run began."""


class PlanError(MMTrainError):
    """Batches cannot be cut as asked (batch size over ranks, token budget, empty corpus)."""


class StreamError(MMTrainError):
    """Batches do not reach a rank in time."""


class AugmentationError(MMTrainError):
    """An augmentation's settings are wrong, or it does not fit a task."""


def first_problem(error: ValidationError) -> str:
    """One line of a pydantic error: where, what, the value that was given."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    given = problem.get("input")
    shown = "" if isinstance(given, dict | BaseModel) else f" (given: {given!r:.100})"
    return f"{where + ': ' if where else ''}{problem['msg']}{shown}"
