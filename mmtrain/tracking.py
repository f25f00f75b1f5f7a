"""Tracking: one run in MLflow, written by one process, that never stops or slows training.

Every call appends to a journal on disk and returns; a thread sends the journal to MLflow. MLflow
away means that the journal waits, also over restarts. A run is always named by its id: MLflow's
fluent run is a thread's own, and two threads would make two runs.

A (metric, step) is logged once and the first value stands: a resumed run repeats the steps since
its checkpoint, and what it repeats is left out. The server says how far each metric has come, so
this also holds for a run resumed on another machine. Steps of one metric must ascend.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from mmtrain.journal import Event, Journal
from mmtrain.mlflow_settings import bounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

_MAX_PARAM_LENGTH = 6000  # MLflow's limits: mlflow.utils.validation
_MAX_TAG_LENGTH = 8000
_MAX_KEY_LENGTH = 250
_MAX_DIGEST_LENGTH = 36
_MAX_METRICS = 1000
_MAX_PARAMS = 100
_MAX_EVENTS = 500  # read at once


class TrackingConfig(BaseModel):
    """Where a run is tracked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str | None = Field(
        default=None, description="MLflow tracking URI; None: a SQLite file beside the run."
    )
    experiment: str = Field(default="mmtrain", description="MLflow experiment.")
    run_name: str | None = Field(
        default=None, description="Name of the run; None: what the writer calls it."
    )
    parent_run_id: str | None = Field(
        default=None, description="Run that this one stands under, e.g. a sweep's; None: none."
    )
    interval_s: float = Field(default=1.0, gt=0, description="Seconds between deliveries.")
    timeout_s: int = Field(default=5, ge=1, description="Longest wait for one answer of a server.")
    retry_s: float = Field(
        default=10.0, gt=0, description="Wait after MLflow could not be reached."
    )


def tracking_uri(config: TrackingConfig, *, out: Path) -> str:
    """The URI that is set, or the SQLite file of the output folder."""
    return config.uri or f"sqlite:///{out.resolve() / 'mlruns.db'}"


class Tracker:
    """The one writer of a run. Its methods return at once; `flush` and `close` wait, bounded."""

    def __init__(self, journal: Journal, *, config: TrackingConfig, out: Path, name: str) -> None:
        self._journal = journal
        self._folder = out / "tracking"
        self._config = config
        self._sender = _Sender(journal, config=config, out=out, name=name)
        self._lock = threading.Lock()
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
        if run_id is not None:
            journal.mark.run_id = run_id
            journal.save_mark()
        tracker = cls(journal, config=config, out=out, name=name)
        tracker._tried.wait(start_s)
        return tracker

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None while MLflow has not been reached once."""
        return self._journal.mark.run_id

    @property
    def uri(self) -> str:
        """The tracking URI in use."""
        return self._sender.uri

    @property
    def num_missing(self) -> int:
        """Events that are not in the journal, the disk being full."""
        return self._journal.num_missing

    def log_params(self, params: Mapping[str, object]) -> None:
        """Parameters, nested ones under dotted names; long values are cut (the recipe is whole)."""
        self._append({"kind": "params", "values": flatten(params)})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Values of a step. A metric's steps must ascend; a step already logged is left out."""
        event = {"kind": "metrics", "step": step, "time_ms": time.time_ns() // 1_000_000}
        self._append({**event, "values": {key: float(value) for key, value in metrics.items()}})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Tags; a later value replaces an earlier one."""
        self._append({"kind": "tags", "values": dict(tags)})

    def log_artifact(self, path: Path, *, folder: str = "") -> None:
        """A file or folder, which must stay where it is until the run is closed."""
        self._append({"kind": "artifact", "path": str(path.resolve()), "folder": folder})

    def log_text(self, text: str, *, name: str) -> None:
        """A text as an artifact, e.g. the recipe as `recipe.json`."""
        path = self._file(name)
        path.write_text(text, encoding="utf-8")
        self.log_artifact(path, folder=str(Path(name).parent).removeprefix("."))

    def log_figure(self, figure: "Figure", *, name: str) -> None:
        """A matplotlib figure as an artifact `name` (.png or .svg)."""
        path = self._file(name)
        figure.savefig(path)
        self.log_artifact(path, folder=str(Path(name).parent).removeprefix("."))

    def log_dataset(self, name: str, *, digest: str, source: str, context: str) -> None:
        """A corpus as an input of the run, under the digest of its contents."""
        event = {"kind": "dataset", "name": name, "digest": digest[:_MAX_DIGEST_LENGTH]}
        self._append({**event, "source": source, "context": context})

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
            self._append({"kind": "status", "status": status})
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        if self._sender.pending():
            logger.warning("MLflow at %s is away; %s holds what to send", self.uri, self._folder)
        if not self._thread.is_alive():  # else the thread still uses it; the process ends anyway
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(status="FINISHED" if kind is None else "FAILED")

    def _file(self, name: str) -> Path:
        path = self._folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _append(self, event: Event) -> None:
        with self._lock:
            self._journal.append(event)

    def _send_loop(self) -> None:
        away_since: float | None = None
        while True:
            closing = self._closing.is_set()
            try:
                self._sender.send_all()
                away_since = None
            except Exception as error:  # whatever MLflow or its storage raises, training goes on
                if away_since is None:
                    logger.warning("MLflow at %s is away (%s); metrics wait", self.uri, error)
                away_since = time.monotonic()
            self._tried.set()
            if closing:
                return
            self._wake.wait(self._config.interval_s if away_since is None else self._config.retry_s)
            self._wake.clear()


class _Sender:
    """Reads the journal and tells MLflow. Used by one thread."""

    def __init__(self, journal: Journal, *, config: TrackingConfig, out: Path, name: str) -> None:
        self._journal, self._config, self._name = journal, config, name
        self.uri = tracking_uri(config, out=out)
        self._client: MlflowClient | None = None
        self._last_step: dict[str, int] = {}
        self._num_repeated = 0

    def pending(self) -> bool:
        """Whether events are not sent yet."""
        return self._journal.unsent(max_events=0)[1] > 0

    def send_all(self) -> None:
        """Sends all events, batch by batch, moving the mark after each."""
        with bounded(self._config.timeout_s):
            client = self._client or self._connect()
            while True:
                events, _ = self._journal.unsent(max_events=_MAX_EVENTS)
                if not events:
                    return
                for group, end in _groups(events):
                    self._send(client, group)
                    self._journal.mark.sent_bytes = end
                    self._journal.save_mark()

    def _connect(self) -> "MlflowClient":
        """Finds or makes the run and learns how far each of its metrics has come."""
        from mlflow import MlflowClient  # seconds to import; the command line must not wait for it

        client = MlflowClient(tracking_uri=self.uri)
        run_id = self._journal.mark.run_id or self._make_run(client)
        run = client.get_run(run_id)
        client.update_run(run_id, status="RUNNING")
        self._last_step = {item.key: item.step for item in run.data.to_proto().metrics}
        self._journal.mark.run_id, self._client = run_id, client
        self._journal.save_mark()
        return client

    def _make_run(self, client: "MlflowClient") -> str:
        experiment_id = find_experiment(client, self._config.experiment)
        key = self._journal.mark.key  # a run made just before a crash is found again
        found = client.search_runs([experiment_id], filter_string=f"tags.mmtrain_key = '{key}'")
        if found:
            return found[0].info.run_id
        name, tags = self._config.run_name or self._name, {"mmtrain_key": key}
        if self._config.parent_run_id:
            tags["mlflow.parentRunId"] = self._config.parent_run_id
        return client.create_run(experiment_id, run_name=name, tags=tags).info.run_id

    def _send(self, client: "MlflowClient", events: Sequence[Event]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            getattr(self, f"_send_{events[0]['kind']}")(client, self._journal.mark.run_id, events)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS"):
                raise  # away: keep and try again; refused: say so, and do not block what follows
            logger.warning("MLflow refused %s: %s", events[0]["kind"], error.message)

    def _send_metrics(self, client: "MlflowClient", run_id: str, events: Sequence[Event]) -> None:
        from mlflow.entities import Metric

        fresh, last_step = [], dict(self._last_step)
        for event in events:
            for name, value in event["values"].items():
                key = _plain_key(name)
                if event["step"] <= last_step.get(key, -1):
                    self._num_repeated += 1
                    continue
                last_step[key] = event["step"]
                fresh.append(Metric(key, value, event["time_ms"], event["step"]))
        for start in range(0, len(fresh), _MAX_METRICS):
            client.log_batch(run_id, metrics=fresh[start : start + _MAX_METRICS], synchronous=True)
        self._last_step = last_step

    def _send_params(self, client: "MlflowClient", run_id: str, events: Sequence[Event]) -> None:
        from mlflow.entities import Param

        there = client.get_run(run_id).data.params  # never changed in MLflow: the first stands
        params = [
            Param(_plain_key(key), _cut(value, _MAX_PARAM_LENGTH))
            for event in events
            for key, value in event["values"].items()
            if _plain_key(key) not in there
        ]
        for start in range(0, len(params), _MAX_PARAMS):
            client.log_batch(run_id, params=params[start : start + _MAX_PARAMS], synchronous=True)

    def _send_tags(self, client: "MlflowClient", run_id: str, events: Sequence[Event]) -> None:
        from mlflow.entities import RunTag

        merged = {key: value for event in events for key, value in event["values"].items()}
        tags = [RunTag(_plain_key(k), _cut(v, _MAX_TAG_LENGTH)) for k, v in merged.items()]
        client.log_batch(run_id, tags=tags, synchronous=True)

    def _send_artifact(self, client: "MlflowClient", run_id: str, events: Sequence[Event]) -> None:
        for event in events:
            path, folder = Path(event["path"]), event["folder"] or None
            if path.is_dir():
                client.log_artifacts(run_id, str(path), folder)
            elif path.exists():
                client.log_artifact(run_id, str(path), folder)
            else:
                logger.warning("%s is gone and cannot be sent to MLflow", path)

    def _send_dataset(self, client: "MlflowClient", run_id: str, events: Sequence[Event]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(event["name"], event["digest"], "local", event["source"]),
                [InputTag("mlflow.data.context", event["context"])],
            )
            for event in events
        ]
        client.log_inputs(run_id, datasets=inputs)

    def _send_status(self, client: "MlflowClient", run_id: str, events: Sequence[Event]) -> None:
        if self._num_repeated:
            logger.info("left out %d values of steps already logged", self._num_repeated)
        client.set_terminated(run_id, status=events[-1]["status"])


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


def flatten(values: Mapping[str, object], *, prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names with values as text; sequences are one value."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, prefix=f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _groups(
    events: Sequence[tuple[Event, int]],
) -> Iterator[tuple[list[Event], int]]:
    """Neighbours of one kind together, each group with the offset of its end."""
    group: list[Event] = []
    end = 0
    for event, offset in events:
        if group and group[0]["kind"] != event["kind"]:
            yield group, end
            group = []
        group.append(event)
        end = offset
    if group:
        yield group, end


def _plain_key(key: str) -> str:
    """The key with what MLflow does not allow in names made "_"."""
    plain = "".join(c if (c.isascii() and c.isalnum()) or c in "_-. /" else "_" for c in key)
    return plain[:_MAX_KEY_LENGTH]


def _cut(value: str, max_length: int) -> str:
    return value if len(value) <= max_length else value[: max_length - 4] + " ..."
