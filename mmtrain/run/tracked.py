"""A run in MLflow from its start to its end. It never stops training, and delays it by bounds."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mmtrain.bundle import code_version
from mmtrain.files import RECIPE
from mmtrain.recipe import Recipe
from mmtrain.run.corpora import open_corpora
from mmtrain.store.config import TrackingConfig
from mmtrain.store.journal import JournalError
from mmtrain.store.tracking import Status, Tracker, status_of

logger = logging.getLogger(__name__)

START_S = 30.0  # longest wait for MLflow to name a run
HAND_OVER_S = 10.0  # longest wait for a delivery that the next process of the run goes on with
END_S = 30.0  # longest wait for the last delivery; the rest waits in the journal


@contextmanager
def tracked(
    recipe: Recipe, config: TrackingConfig, *, out: Path, data_dir: Path
) -> Generator[str | None]:
    """The run's id while it trains. It is RUNNING then, and FINISHED, FAILED or KILLED after."""
    run_id = start_tracking(recipe, config, out=out, data_dir=data_dir)
    try:
        yield run_id
    except BaseException as error:
        end_tracking(recipe, config, out=out, status=status_of(error))
        raise
    end_tracking(recipe, config, out=out, status="FINISHED")


def start_tracking(
    recipe: Recipe, config: TrackingConfig, *, out: Path, data_dir: Path
) -> str | None:
    """Opens the run in MLflow, or goes on in the folder's own, and tells what it starts from."""
    tracker = Tracker.open(
        config, out=out, name=recipe.name, resume=(out / "tracking").exists(), start_s=START_S
    )
    try:
        _tell_start(tracker, recipe, data_dir=data_dir)
    except BaseException as error:
        tracker.close(status=status_of(error), timeout_s=END_S)
        raise
    tracker.close(status=None, timeout_s=HAND_OVER_S)
    return tracker.run_id


def _tell_start(tracker: Tracker, recipe: Recipe, *, data_dir: Path) -> None:
    tracker.log_params(recipe.model_dump(mode="json"))
    tracker.log_text(recipe.model_dump_json(indent=1), name=RECIPE)
    tracker.log_tags({"recipe": recipe.name, "recipe_digest": recipe.digest()})
    tracker.log_tags({"code_version": code_version()})
    if recipe.init_from:
        tracker.log_tags({"init_from": recipe.init_from})
    for task, manifest in open_corpora(recipe, data_dir).train.items():
        source = str(manifest.folder)
        tracker.log_dataset(task, digest=manifest.digest, source=source, context="train")


def end_tracking(recipe: Recipe, config: TrackingConfig, *, out: Path, status: Status) -> None:
    """Tells MLflow how the run ended."""
    try:
        tracker = Tracker.open(config, out=out, name=recipe.name, resume=True, start_s=0)
    except JournalError as error:  # a worker that does not end; the run's own end is not hidden
        logger.warning("MLflow is not told that the run is %s: %s", status, error)
        return
    tracker.close(status=status, timeout_s=END_S)
