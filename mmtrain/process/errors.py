"""How a run ends that does not reach its end."""

from pipelines.errors import MMTrainError


class RunFailedError(MMTrainError):
    """A run stopped for a reason that a restart does not mend."""


class RunInterruptedError(RunFailedError):
    """A run was stopped from outside; what was saved stands."""
