"""What ended a run, from its workers to its driver and to its reader: files in its folder.

failure.json   why a restart would not help; of one attempt alone
errors.log     tracebacks of workers, and all that Ray said of processes that died
"""

import contextlib
import json
import time
from pathlib import Path

from ray.exceptions import RayError

from mmtrain.cluster import reason
from mmtrain.files import ERRORS, FAILURE
from mmtrain.process.errors import RunFailedError
from mmtrain.run.job import Job
from pipelines.errors import MMTrainError
from pipelines.files import write_whole


def write_failure(job: Job, error: MMTrainError) -> None:
    """Leaves word for the driver of this attempt that a restart would not help."""
    told = {"attempt": job.attempt, "kind": type(error).__name__, "message": str(error)}
    write_whole(job.out / FAILURE, json.dumps(told))


def failure_of(job: Job) -> str | None:
    """What a worker of this attempt left word of."""
    path = job.out / FAILURE
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return told["message"] if told.get("attempt") == job.attempt else None


def raise_failure(job: Job) -> None:
    """Raises what a worker of this attempt left word of.

    Raises:
        RunFailedError: the run stopped for a reason that a restart does not mend.
    """
    if (message := failure_of(job)) is not None:
        raise RunFailedError(message)


def note_error(out: Path, text: str) -> None:
    """Adds a traceback to the run's log; a folder that cannot be written changes nothing."""
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    with contextlib.suppress(OSError), (out / ERRORS).open("a", encoding="utf-8") as file:
        file.write(f"---- {now}\n{text.rstrip()}\n")


def lost_run(job: Job, error: Exception, *, max_failures: int) -> RunFailedError:
    """The one line of a run that lost its workers for good, or Ray's process that watches them.

    Args:
        job: the run; its log gets all that Ray said.
        error: from Ray.
        max_failures: restarts that the recipe allows.
    """
    note_error(job.out, str(error))
    if isinstance(error, RayError):
        what = f"Ray's controller of the run died: {reason(error)}"
    else:
        failures = getattr(error, "worker_failures", None) or {0: error}
        last = reason(next(iter(failures.values())))
        what = f"workers failed more than {max_failures} times, the last with: {last}"
    return RunFailedError(
        f"{what}. More is in {job.out / ERRORS}. What was saved stands; go on with --resume"
    )
