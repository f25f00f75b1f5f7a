"""MLflow's client with every call bounded by the clock, and MLflow's own settings.

MLflow bounds a read, not a request, and reads its bounds from the environment at each request. So
the environment is set once in a process, and a call is given up when its time is over (`deadline`).
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mmtrain.process.deadline import LEAST_BYTES_PER_S, within
from mmtrain.process.environment import set_for_good
from mmtrain.process.logs import hush

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

REQUEST_S = 30.0  # longest wait for one answer of a server, whole
STORE_S = 120.0  # of a database: the first call makes its tables, a minute on a busy machine
_PAUSE_S = 1.0  # between attempts
_MAX_METRICS = 1000  # in a request: mlflow.utils.validation
_REPEATABLE = ("get_", "search_", "list_", "log_artifact", "log_model_artifacts")  # harmless twice
_UPLOADS = ("log_artifact", "log_artifacts", "log_model_artifacts")  # (owner, path, ...)
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # s a read: ends the thread of a call that was given up
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a request that creates is not to be sent twice
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # read when MLflow is imported
}
_settling = threading.Lock()
_is_settled = False


def settle() -> None:
    """Sets for this process what MLflow reads from its environment, once; the user's own stands.

    Not around each call: the environment belongs to the process, and two threads that set and
    unset it would take each other's settings away.
    """
    global _is_settled
    with _settling:
        if _is_settled:
            return
        if "MLFLOW_LOGGING_LEVEL" not in os.environ:
            hush("mlflow", level=logging.WARNING)
        set_for_good(_SETTINGS)
        _is_settled = True


def connect(uri: str, *, within_s: float = REQUEST_S, attempts: int = 1) -> "MlflowClient":
    """A client of the runs and the registry at a URI, each call of which ends in time.

    Args:
        uri: a server's, or a database's.
        within_s: longest wait for one answer of a server; a file's bytes have time of their own.
        attempts: of what does no harm twice, where the server could not be reached.

    Raises (as every method of the client does):
        DeadlineError: there was no answer in time.
    """
    settle()
    from mlflow import MlflowClient  # seconds to import; the command line must not wait for it

    if not uri.startswith(("http://", "https://")):
        within_s = max(within_s, STORE_S)
    client = within(within_s, lambda: MlflowClient(tracking_uri=uri, registry_uri=uri))
    return cast("MlflowClient", _Bounded(client, within_s=within_s, attempts=attempts))


class _Bounded:
    """MLflow's client behind a wall clock."""

    def __init__(self, client: "MlflowClient", *, within_s: float, attempts: int) -> None:
        self._client, self._within_s, self._attempts = client, within_s, attempts

    def __getattr__(self, name: str) -> Any:  # whatever MLflow's client has
        found = getattr(self._client, name)
        return partial(self._call, name, found) if callable(found) else found

    def _call(self, name: str, method: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        from mlflow.exceptions import MlflowException

        size = _num_bytes(Path(args[1]), of=lambda found: found.st_size) if name in _UPLOADS else 0
        seconds = self._within_s + size / LEAST_BYTES_PER_S
        for _ in range(self._attempts - 1 if name.startswith(_REPEATABLE) else 0):
            try:
                return within(seconds, lambda: method(*args, **options))
            except MlflowException as error:
                if error.error_code not in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
                    raise  # an answer
            time.sleep(_PAUSE_S)
        return within(seconds, lambda: method(*args, **options))


def download(uri: str, *, folder: Path, tracking_uri: str) -> Path:
    """Fetches an artifact, a file or a folder, and says where it lies in `folder`.

    Raises:
        DeadlineError: no bytes came for `REQUEST_S`.
    """
    settle()
    import mlflow.artifacts

    fetch = partial(
        mlflow.artifacts.download_artifacts, uri, dst_path=str(folder), tracking_uri=tracking_uri
    )

    def progress() -> int:  # blocks: a file of its full length may still be empty
        return _num_bytes(folder, of=lambda found: found.st_blocks * 512)

    return Path(within(REQUEST_S, fetch, progress=progress))


def find_experiment(client: "MlflowClient", name: str) -> str:
    """Id of the experiment, which is made if it is not there.

    Of a SQLite store the artifacts go beside the file: MLflow's own default is the folder that the
    process happens to stand in.
    """
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    file = client.tracking_uri.removeprefix("sqlite:///")
    beside = Path(file).absolute().with_name("mlartifacts").as_uri()
    is_file = file != client.tracking_uri
    return client.create_experiment(name, artifact_location=beside if is_file else None)


def log_metrics(client: "MlflowClient", run_id: str, metrics: "Sequence[Metric]") -> None:
    """Values of any number, in requests of as many as MLflow takes."""
    for start in range(0, len(metrics), _MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS], synchronous=True)


def _num_bytes(path: Path, *, of: Callable[[os.stat_result], int]) -> int:
    """Of a file, or of all files in a folder, which may come and go meanwhile."""
    total = 0
    for file in path.rglob("*") if path.is_dir() else (path,):
        with contextlib.suppress(FileNotFoundError):
            total += of(file.stat()) if file.is_file() else 0
    return total
