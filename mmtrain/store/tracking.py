"""Tracking: one run in MLflow, written by one process, that never stops or slows training.

Every call appends to a journal on disk and returns; a thread sends the journal to MLflow. MLflow
away means that the journal waits, also over restarts. (MLflow's own queue, `synchronous=False` in
3.17, is in memory, drops a batch that fails, and keeps a process from ending while a server
trickles.) A run is always named by its id: MLflow's fluent run is a thread's own, and two threads
would make two runs.

A (metric, step) is logged once and the first value stands: a resumed run repeats the steps since
its checkpoint, and what it repeats is left out. The server says how far each metric has come, so
this also holds for a run resumed on another machine. Steps of one metric must ascend.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from mmtrain.process.errors import RunInterruptedError
from mmtrain.store.client import settle
from mmtrain.store.config import TrackingConfig, tracking_uri
from mmtrain.store.delivery import Sender
from mmtrain.store.journal import Journal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

_MAX_DIGEST_LENGTH = 36  # MLflow's limit: mlflow.utils.validation


class Tracker:
    """The one writer of a run. Its methods return at once; `flush` and `close` wait, bounded."""

    def __init__(self, journal: Journal, *, config: TrackingConfig, out: Path, name: str) -> None:
        settle()
        self._journal = journal
        self._folder = out / "tracking"
        self._config = config
        self.uri = tracking_uri(config, out=out)
        self._sender = Sender(journal, config=config, uri=self.uri, name=name)
        self._wake, self._tried, self._closing = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=self._send_loop, name="tracking", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        config: TrackingConfig,
        *,
        out: Path,
        name: str,
        run_id: str | None = None,
        resume: bool = False,
        start_s: float = 30.0,
    ) -> Self:
        """Opens a new run, or with `resume` or a `run_id` goes on in the one before.

        Args:
            config: where the run is tracked.
            out: the run's folder; the journal is in its `tracking`.
            name: the run's name in MLflow.
            run_id: run to go on in, as a checkpoint names it; None with `resume`: the journal's.
            resume: keep the journal of the folder and send what it still holds.
            start_s: longest wait for MLflow to name the run; training starts without it then.

        Raises:
            JournalError: another process writes the folder's journal.
        """
        journal = Journal.open(out / "tracking", resume=resume or run_id is not None)
        journal.move_mark(run_id=run_id)
        if resume or run_id is not None:  # it may have ended before
            journal.append({"kind": "status", "status": "RUNNING"})
        tracker = cls(journal, config=config, out=out, name=name)
        tracker._tried.wait(start_s)
        return tracker

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None while MLflow has not been reached once."""
        return self._journal.mark.run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Parameters, nested ones under dotted names; long values are cut (the recipe is whole)."""
        self._journal.append({"kind": "params", "values": flatten(params)})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Values of a step. A metric's steps must ascend; a step already logged is left out."""
        values, now_ms = (
            {key: float(value) for key, value in metrics.items()},
            time.time_ns() // 10**6,
        )
        self._journal.append({"kind": "metrics", "step": step, "time_ms": now_ms, "values": values})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Tags; a later value replaces an earlier one."""
        self._journal.append({"kind": "tags", "values": dict(tags)})

    def log_artifact(self, path: Path, *, folder: str = "") -> None:
        """A file or folder, which must stay where it is until the run is closed."""
        self._journal.append({"kind": "artifact", "path": str(path.resolve()), "folder": folder})

    def log_text(self, text: str, *, name: str) -> None:
        """A text as an artifact, e.g. the recipe as `recipe.json`."""
        self._log_file(name, lambda path: path.write_text(text, encoding="utf-8"))

    def log_figure(self, figure: "Figure", *, name: str) -> None:
        """A matplotlib figure as an artifact `name` (.png or .svg)."""
        self._log_file(name, figure.savefig)

    def log_dataset(self, name: str, *, digest: str, source: str, context: str) -> None:
        """A corpus as an input of the run, under the digest of its contents."""
        event = {"kind": "dataset", "name": name, "digest": digest[:_MAX_DIGEST_LENGTH]}
        self._journal.append({**event, "source": source, "context": context})

    def flush(self, *, timeout_s: float = 30.0) -> bool:
        """Waits until all is delivered; False when it is not within the time."""
        deadline = time.monotonic() + timeout_s
        while self._sender.pending() and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.02)
        return not self._sender.pending()

    def close(self, *, status: Status | None = "FINISHED", timeout_s: float = 60.0) -> None:
        """Delivers what it can, ends the run, stops the thread; the rest waits in the journal.

        With `status` None the run goes on: another process opens it next.
        """
        if status is not None:
            self._journal.append({"kind": "status", "status": status})
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        pending = self._sender.pending()
        self._journal.close()  # also of a thread that still waits: it begins nothing more
        if pending:
            logger.warning("MLflow at %s is away; %s holds what to send", self.uri, self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(status="FINISHED" if error is None else status_of(error))

    def _log_file(self, name: str, write: Callable[[Path], object]) -> None:
        path = self._folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        self.log_artifact(path, folder=str(Path(name).parent).removeprefix("."))

    def _send_loop(self) -> None:
        away_since: float | None = None
        while True:
            closing = self._closing.is_set()
            try:
                self._sender.send_all()
                away_since = None
            except Exception as error:  # whatever MLflow or its storage raises, training goes on
                if away_since is None and not self._journal.closed:
                    logger.warning("MLflow at %s is away (%s); metrics wait", self.uri, error)
                away_since = time.monotonic()
            self._tried.set()
            if closing or self._journal.closed:
                return
            self._wake.wait(self._config.interval_s if away_since is None else self._config.retry_s)
            self._wake.clear()


def status_of(error: BaseException) -> Status:
    """How a run ended that ended with an error."""
    stopped = isinstance(error, (KeyboardInterrupt, SystemExit, RunInterruptedError))
    return "KILLED" if stopped else "FAILED"


def flatten(values: Mapping[str, object], *, prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names with values as text; sequences are one value."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, prefix=f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
