"""Delivery: the journal of a run told to MLflow, every request bounded.

A request may be given up and yet be carried out. So each may be sent again: a run is found by its
key, MLflow keeps one of equal metric points (the journal holds their times), and tags, parameters,
files and datasets are what they were.
"""

import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from mmtrain.store.client import connect, find_experiment, log_metrics
from mmtrain.store.config import TrackingConfig
from mmtrain.store.journal import Event, Journal

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_MAX_PARAM_LENGTH = 6000  # MLflow's limits: mlflow.utils.validation
_MAX_TAG_LENGTH = 8000
_MAX_KEY_LENGTH = 250
_MAX_PARAMS = 100
_MAX_EVENTS = 500  # read at once


class Sender:
    """Reads the journal and tells MLflow. Used by one thread."""

    def __init__(self, journal: Journal, *, config: TrackingConfig, uri: str, name: str) -> None:
        self._journal, self._config, self._uri, self._name = journal, config, uri, name
        self._client: MlflowClient | None = None
        self._last_step: dict[str, int] = {}
        self._num_repeated = 0

    def pending(self) -> bool:
        """Whether events are not sent yet."""
        return self._journal.unsent(max_events=0)[1] > 0

    def send_all(self) -> None:
        """Sends all events, batch by batch, moving the mark after each; stops where the journal is
        closed.

        Raises (whatever MLflow or its storage raises):
            DeadlineError: a request did not end in time.
        """
        try:
            client = self._client or self._connect()
            while events := self._journal.unsent(max_events=_MAX_EVENTS)[0]:
                for kind, neighbours in groupby(events, key=lambda pair: pair[0]["kind"]):
                    group = list(neighbours)
                    if self._journal.closed:
                        return
                    self._send(client, kind, [event for event, _ in group])
                    self._journal.move_mark(sent_bytes=group[-1][1])
        except Exception:
            self._client = None  # what MLflow has of the last request is asked anew
            raise

    def _connect(self) -> "MlflowClient":
        """Finds or makes the run and learns how far each of its metrics has come."""
        client = connect(self._uri, within_s=self._config.timeout_s)
        run_id = self._journal.mark.run_id or self._make_run(client)
        self._journal.move_mark(run_id=run_id)
        run = client.get_run(run_id)
        self._last_step = {item.key: item.step for item in run.data.to_proto().metrics}
        self._client = client
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

    def _send(self, client: "MlflowClient", kind: str, events: Sequence[Event]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            getattr(self, f"_send_{kind}")(client, self._journal.mark.run_id, events)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS"):
                raise  # away: keep and try again; refused: say so, and do not block what follows
            logger.warning("MLflow refused %s: %s", kind, error.message)

    def _send_metrics(self, client: "MlflowClient", run_id: str, events: Sequence[Event]) -> None:
        from mlflow.entities import Metric

        fresh: list[Metric] = []
        last_step = dict(self._last_step)
        for event in events:
            for name, value in event["values"].items():
                key = _plain_key(name)
                if event["step"] <= last_step.get(key, -1):
                    self._num_repeated += 1
                    continue
                last_step[key] = event["step"]
                fresh.append(Metric(key, value, event["time_ms"], event["step"]))
        log_metrics(client, run_id, fresh)
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
        status = events[-1]["status"]
        if status == "RUNNING":
            client.update_run(run_id, status=status)
        else:
            client.set_terminated(run_id, status=status)


def _plain_key(key: str) -> str:
    """The key with what MLflow does not allow in names made "_"."""
    plain = "".join(c if (c.isascii() and c.isalnum()) or c in "_-. /" else "_" for c in key)
    return plain[:_MAX_KEY_LENGTH]


def _cut(value: str, max_length: int) -> str:
    return value if len(value) <= max_length else value[: max_length - 4] + " ..."
