"""Evaluation: every metric of a task on a built split, beside its trivial baseline's.

One process, batches in a fixed order, nothing random: the same model and shards give the same
numbers. Answers are decoded as a user would get them; token metrics come from a second pass that
is given the true tokens.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from mmtrain.evaluate.measure import (
    EvaluationConfig,
    OnBatch,
    Trivial,
    fit_trivial,
    measure,
    read_examples,
)
from mmtrain.evaluate.metrics import Facts, load_metric
from mmtrain.evaluate.results import (
    Results,
    Score,
    SplitResult,
    TaskResult,
    run_results,
    task_result,
)
from mmtrain.evaluate.samples import sample, spread
from mmtrain.predict.predictor import Predictor
from pipelines.errors import CorpusError, UnknownNameError
from pipelines.shards import REMEDY, Manifest, open_manifest, shard_folder
from pipelines.task import Split

__all__ = ["EvaluationConfig", "OnBatch", "evaluate", "evaluate_model"]

_HARD: Split = "test_hard"


def evaluate_model(
    uri: str | Path,
    *,
    data_dir: Path,
    split: str = "test",
    tasks: Sequence[str] = (),
    limit: int | None = None,
    beam_size: int = 1,
    on_batch: OnBatch | None = None,
) -> Results:
    """Measures a bundle, a run or a registered model on its tasks; see `evaluate`."""
    if split not in get_args(Split):
        raise UnknownNameError("split", split, get_args(Split))
    config = EvaluationConfig(limit=limit, beam_size=beam_size)
    predictor = Predictor.load(uri)
    return evaluate(
        predictor,
        data_dir=data_dir,
        split=cast(Split, split),
        tasks=tasks,
        config=config,
        on_batch=on_batch,
    )


def evaluate(
    predictor: Predictor,
    *,
    data_dir: Path,
    split: Split = "test",
    tasks: Sequence[str] = (),
    config: EvaluationConfig | None = None,
    on_batch: OnBatch | None = None,
) -> Results:
    """Measures a model on built splits.

    Args:
        predictor: the model.
        data_dir: folder of the built corpora.
        split: split of each task; beside "test" goes "test_hard" where the task has it.
        tasks: tasks to measure; none named: all of the model.
        config: how.
        on_batch: called after each batch.

    Raises:
        CorpusError: a split is not built, or was built with other features than the model's.
        UnknownNameError: the model has no such task.
    """
    config = config or EvaluationConfig()
    rows: dict[str, TaskResult] = {}
    lineage = predictor.bundle.card.lineage
    for name in tasks or tuple(predictor.tasks):
        predictor.task(name)
        train, *corpora = _open(predictor, task=name, data_dir=data_dir, split=split)
        examples = read_examples(train, limit=config.baseline_examples)
        trivial = fit_trivial(predictor, train.task, examples=examples)
        results = tuple(
            evaluate_split(
                predictor,
                manifest,
                trivial=trivial,
                data_dir=data_dir,
                config=config,
                on_batch=on_batch,
            )
            for manifest in corpora
        )
        rows[name] = task_result(
            results,
            steps=lineage.task_steps.get(name, 0),
            seconds=lineage.task_seconds.get(name, 0.0),
        )
    return run_results(
        rows,
        name=lineage.recipe,
        step=lineage.step,
        seconds=lineage.seconds,
        num_parameters=predictor.bundle.card.num_parameters,
    )


def evaluate_split(
    predictor: Predictor,
    manifest: Manifest,
    *,
    trivial: Trivial,
    data_dir: Path,
    config: EvaluationConfig,
    on_batch: OnBatch | None = None,
) -> SplitResult:
    """One task on one split: each metric, its baseline's value, and samples.

    Args:
        predictor: the model.
        manifest: the split.
        trivial: the task's trivial predictor, fitted on its training split.
        data_dir: data folder, where recordings are looked up for the samples.
        config: how.
        on_batch: called after each batch.
    """
    began = time.monotonic()
    task, examples = manifest.task, list(read_examples(manifest, limit=config.limit))
    answers, facts = measure(predictor, task, examples=examples, config=config, on_batch=on_batch)
    baseline = trivial(examples)
    return SplitResult(
        split=manifest.split,
        scores=tuple(_score(name, facts, trivial=baseline) for name in task.metrics),
        baseline=task.baseline,
        num_examples=len(examples),
        seconds=time.monotonic() - began,
        samples=tuple(
            sample(
                predictor,
                manifest,
                row,
                example=examples[row],
                answer=answers[row],
                data_dir=data_dir,
            )
            for row in spread(len(examples), config.num_samples)
        ),
    )


def _open(predictor: Predictor, *, task: str, data_dir: Path, split: Split) -> tuple[Manifest, ...]:
    """The task's training split, then the splits to measure on, checked against the model."""
    train = open_manifest(shard_folder(data_dir, task=task, split="train"))
    splits = [split]
    if split == "test" and _HARD in train.task.source.splits:
        splits.append(_HARD)
    found = [open_manifest(shard_folder(data_dir, task=task, split=name)) for name in splits]
    return tuple(as_trained(predictor, manifest) for manifest in (train, *found))


def as_trained(predictor: Predictor, manifest: Manifest) -> Manifest:
    """A split as the model reads it and is measured: with the mean and deviation of its own
    training split, and the metrics and the baseline of its own run.

    Raises:
        CorpusError: it was built with other features than the model's, or another vocabulary;
            names both.
    """
    known = predictor.task(manifest.task.name)
    for side in ("inputs", "targets"):
        built, trained = getattr(manifest.task, side), getattr(known, side)
        if built.as_asked() != trained.as_asked():
            raise CorpusError(
                f"{manifest.folder} was built with {side} {built}, the model was trained with "
                f"{trained}; {REMEDY} with the model's recipe"
            )
    ours = predictor.vocabulary.digest if predictor.vocabulary else None
    if manifest.vocabulary_digest is not None and manifest.vocabulary_digest != ours:
        raise CorpusError(
            f"{manifest.folder} was built with vocabulary {manifest.vocabulary_digest}, the model "
            f"was trained with {ours}; give the corpora that the model was trained on (--data)"
        )
    if known.metrics:  # a bundle from before has none
        changes = {"metrics": known.metrics, "baseline": known.baseline}
        manifest = manifest.model_copy(update={"task": manifest.task.model_copy(update=changes)})
    return manifest.with_inputs(known.inputs)


def _score(name: str, facts: Facts, *, trivial: Facts) -> Score:
    metric = load_metric(name)
    return Score(
        metric=metric.name,
        label=metric.label,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        value=metric(facts),
        baseline=metric(trivial),
    )
