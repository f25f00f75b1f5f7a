"""Measuring a registered version, which keeps what was measured."""

from collections.abc import Sequence
from pathlib import Path

from mmtrain.evaluate.evaluate import evaluate_model
from mmtrain.evaluate.results import Results, to_metrics
from mmtrain.registry.register import record
from mmtrain.registry.versions import registry_uri
from mmtrain.store.models import RegistryError, fixed_uri


def evaluate_and_record(
    uri: str,
    *,
    data_dir: Path,
    split: str = "test",
    tasks: Sequence[str] = (),
    limit: int | None = None,
) -> Results:
    """`evaluate_model` of a registered version, which keeps what was measured.

    Raises:
        RegistryError: it is no registered version, only a part is measured, or MLflow cannot be
            reached.
    """
    if limit is not None:
        raise RegistryError(
            f"--record keeps what whole splits say, --limit {limit} measures a part; leave one out"
        )
    tracking_uri = registry_uri(None)
    version = fixed_uri(uri, tracking_uri=tracking_uri)
    results = evaluate_model(version, data_dir=data_dir, split=split, tasks=tasks, limit=limit)
    record(version, to_metrics(results), tracking_uri=tracking_uri)
    return results
