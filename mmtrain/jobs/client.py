"""Jobs on a Ray cluster, over its HTTP interface: submit, follow, list, stop.

A run's jobs carry its name; a run has at most one that is under way. The client may go away at any
moment: the job goes on, and submitting the same command again finds it.
"""

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from mmtrain.jobs.submission import (
    ENDED,
    Attempt,
    Decision,
    JobError,
    Submission,
    decide,
    stage_code,
)
from mmtrain.process.deadline import DeadlineError, within
from mmtrain.process.environment import environment
from mmtrain.process.logs import hush
from pipelines.errors import UnknownNameError

HERE = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
REQUEST_S = 20  # longest wait for one answer
LOST_S = 120  # longest time without a cluster while a job is followed
STOP_S = 30  # longest wait for a job to stop


@dataclass(frozen=True, slots=True)
class JobLine:
    """A job as it is listed; times in seconds since 1970."""

    id: str
    run: str
    status: str
    command: str
    started: float | None
    ended: float | None
    message: str

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self.ended or time.time()) - self.started if self.started else 0.0


class _Client(JobSubmissionClient):
    """Ray's client, every request of it bounded in time: its bytes each, and the whole.

    Ray 2.60 sets no bounds. All of its requests pass `_do_request` (ray/dashboard/modules/
    dashboard_sdk.py); where that is gone, `test_a_host_that_takes_the_call_...` waits for ever.
    """

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        ask = super()._do_request
        return within(2 * REQUEST_S, lambda: ask(method, endpoint, timeout=REQUEST_S, **options))


class Cluster:
    """The jobs of the Ray cluster at an address.

    Raises (every method):
        JobError: the cluster does not answer in time, or refuses the token.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = dashboard_url(address)
        with _only_address(self.address), self._plain_errors():
            hush(*CHATTY)
            self._client = _Client(self.address)

    def submit(self, submission: Submission) -> Decision:
        """Starts the run's job unless it is under way or done; says which."""
        run = submission.run
        attempts = [
            Attempt(str(job.submission_id), run, job.metadata.get("digest", ""), job.status)
            for job in self._submitted()
            if job.metadata and job.metadata.get("run") == run
        ]
        decision = decide(submission, attempts)
        if decision.act != "start":
            return decision
        with tempfile.TemporaryDirectory() as folder, self._plain_errors():
            code = stage_code(Path(folder) / "code", submission)
            try:
                self._client.submit_job(
                    entrypoint=submission.entrypoint,
                    runtime_env={"working_dir": str(code)},
                    metadata={
                        "run": submission.run,
                        "digest": submission.digest,
                        "command": " ".join(submission.arguments),
                    },
                    submission_id=decision.id,
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                return Decision("attach", decision.id)  # another client came first
        return decision

    def jobs(self) -> list[JobLine]:
        """All jobs submitted to the cluster, the newest first."""
        lines = map(_line, self._submitted())
        return sorted(lines, key=lambda job: job.started or 0, reverse=True)

    def _submitted(self) -> list[JobDetails]:
        with self._plain_errors():
            return [job for job in self._client.list_jobs() if job.submission_id]

    def find(self, name: str) -> str:
        """The submission id of that name, or a run's newest.

        Raises:
            UnknownNameError: the cluster has no such job.
        """
        jobs = self.jobs()
        named = [job.id for job in jobs if name == job.run]
        named += [job.id for job in jobs if name == job.id]
        if not named:
            raise UnknownNameError("job", name, tuple(job.id for job in jobs))
        return named[0]

    def follow(self, job_id: str, *, write: Callable[[str], object]) -> JobDetails:
        """Hands on the job's log as it grows, until the job ends; a lost connection is taken up.

        Returns:
            The job as it ended.

        Raises:
            JobError: the cluster was away for two minutes; the job may go on.
        """
        handed_on, lost_at = 0, None

        async def tail() -> None:
            nonlocal handed_on
            position = 0  # a connection begins at the log's first character
            async for text in self._client.tail_job_logs(job_id):
                write(text[max(0, handed_on - position) :])
                position += len(text)
                handed_on = max(handed_on, position)

        while True:
            try:
                # not in the main thread: there the event loop would take Ctrl-C and hand it to a
                # task, which may be closing a connection and lose it
                within(threading.TIMEOUT_MAX, lambda: asyncio.run(tail()))
                with self._plain_errors():
                    job = self._client.get_job_info(job_id)
                if job.status in ENDED:
                    return job
                lost_at = None
            except (RuntimeError, JobError, OSError, aiohttp.ClientError) as error:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > LOST_S:
                    raise JobError(
                        f"lost {self.address} ({error}); the job may go on. Come back with "
                        f"`mmtrain jobs logs --follow {job_id}`"
                    ) from None
            time.sleep(1)

    def logs(self, job_id: str) -> str:
        """All of the job's log so far."""
        with self._plain_errors():
            return self._client.get_job_logs(job_id)

    def stop(self, job_id: str) -> JobLine:
        """Stops a job and waits until it has ended.

        Raises:
            JobError: it has not ended in time.
        """
        with self._plain_errors():
            self._client.stop_job(job_id)
            deadline = time.monotonic() + STOP_S
            while time.monotonic() < deadline:
                job = self._client.get_job_info(job_id)
                if job.status in ENDED:
                    return _line(job)
                time.sleep(0.3)
        raise JobError(f"{job_id} has not stopped in {STOP_S} s; see `mmtrain jobs list`")

    @contextmanager
    def _plain_errors(self) -> Generator[None]:
        try:
            yield
        except AuthenticationError as error:
            is_missing = str(error).startswith("Authentication required")
            refusal = "wants a token and got none" if is_missing else "refuses the token"
            raise JobError(
                f"{self.address} {refusal}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or "
                "RAY_AUTH_TOKEN_PATH to its file"
            ) from None
        except (ConnectionError, DeadlineError, requests.exceptions.RequestException):
            raise JobError(
                f"no Ray cluster answers at {self.address}; start one (`ray start --head`), "
                "forward its port 8265 to here, or give --address http://HOST:8265"
            ) from None
        except RuntimeError as error:
            raise JobError(f"{self.address}: {str(error).strip().splitlines()[-1]}") from None


def dashboard_url(address: str | None) -> str:
    """The HTTP address of a cluster's dashboard.

    Args:
        address: `http://HOST:PORT`, `HOST:PORT`, `auto`; None: `RAY_API_SERVER_ADDRESS`,
            `RAY_ADDRESS`, or this machine's.

    Raises:
        JobError: it is not one.
    """
    named = address or next((os.environ[v] for v in ADDRESS_VARIABLES if os.environ.get(v)), "auto")
    if named in ("auto", "local"):
        return HERE
    url = named if "://" in named else f"http://{named}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise JobError(f"address {named!r}: give the dashboard's, e.g. {HERE}")
    return url.rstrip("/")


@contextmanager
def _only_address(url: str) -> Generator[None]:
    """Within, a client takes this address.

    Ray 2.60 lets its variables win over an address that is given (ray/dashboard/utils.py:
    get_address_for_submission_client); `test_a_given_address_wins_over_rays_variables` pins it.
    """
    with environment({ADDRESS_VARIABLES[0]: url}, overrides=True):
        yield


def _line(job: JobDetails) -> JobLine:
    metadata = job.metadata or {}
    return JobLine(
        id=str(job.submission_id),
        run=metadata.get("run", str(job.submission_id)),
        status=str(job.status),
        command=metadata.get("command", job.entrypoint),
        started=job.start_time / 1000 if job.start_time else None,
        ended=job.end_time / 1000 if job.end_time else None,
        message=(job.message or "").strip(),
    )


def exit_code(job: JobDetails) -> int:
    """How an ended job's command exited; 128 + signal after a signal, as a shell says it."""
    if job.status == "SUCCEEDED":
        return 0
    code = job.driver_exit_code
    if not code:
        return 143 if job.status == "STOPPED" else 1
    return code if code > 0 else 128 - code
