"""MLflow's own settings while we call it: waits bounded, no bars and links on the terminal.

MLflow reads them from the environment at each request; so they hold inside a call of ours and
nowhere else, and what the user has set stays as it is. How loud it is, it reads once, when it is
imported; so its logger is told.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bounded(timeout_s: int, *, max_retries: int = 0) -> Iterator[None]:
    """MLflow's waits cut short; its own are 120 s a request and 7 retries, minutes in all.

    Args:
        timeout_s: longest wait for one answer.
        max_retries: further attempts, a second and then twice as long apart.
    """
    settings = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(max_retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",  # read where this call is the one that imports it
    }
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    loud = logging.getLogger("mlflow")
    level = loud.level
    if "MLFLOW_LOGGING_LEVEL" in ours:
        loud.setLevel(logging.WARNING)
    try:
        yield
    finally:
        loud.setLevel(level)
        for name in ours:
            os.environ.pop(name, None)
