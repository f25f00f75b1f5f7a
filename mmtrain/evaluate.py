"""Evaluation: every metric of a task on a built split, beside its trivial baseline's.

One process, batches in a fixed order, nothing random: the same model and shards give the same
numbers. Answers are decoded as a user would get them; token metrics come from a second pass that
is given the true tokens.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch

from mmtrain import losses
from mmtrain.baselines import Answer, BigramModel, Pair, load_baseline
from mmtrain.metrics import Facts, load_metric
from mmtrain.predictor import Prediction, Predictor
from mmtrain.results import (
    Results,
    Score,
    SplitResult,
    TaskResult,
    run_results,
    task_result,
)
from mmtrain.samples import sample, spread
from pipelines import modalities
from pipelines.errors import CorpusError, UnknownNameError
from pipelines.modalities import Feature
from pipelines.shards import REMEDY, Example, Manifest, ShardReader, open_manifest, shard_folder
from pipelines.task import Split, Task

OnBatch = Callable[[str, int, int], None]  # task, examples done, examples in all

_HARD: Split = "test_hard"
_CHUNK = 1024  # rows read together


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """How a model is measured.

    Args:
        batch_size: examples answered together.
        beam_size: beams of text decoding; 1 is greedy.
        limit: examples of a split at most, the first ones; None: all.
        num_samples: examples shown, spread evenly over the split.
        baseline_examples: training examples that a baseline learns from at most.
    """

    batch_size: int = 64
    beam_size: int = 1
    limit: int | None = None
    num_samples: int = 4
    baseline_examples: int = 100_000


@dataclass(frozen=True, slots=True)
class Trivial:
    """A task's trivial predictors, fitted: of whole answers, and of tokens with true ones given."""

    answer: Answer
    tokens: BigramModel


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
        trivial = fit_trivial(predictor, train, max_examples=config.baseline_examples)
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
        trivial: the task's trivial predictors, fitted on its training split.
        data_dir: data folder, where recordings are looked up for the samples.
        config: how.
        on_batch: called after each batch.
    """
    began = time.monotonic()
    task, examples = manifest.task, list(_examples(manifest, limit=config.limit))
    answers, facts = measure(predictor, task, examples=examples, config=config, on_batch=on_batch)
    baseline = trivial_facts(predictor, task, trivial=trivial, examples=examples)
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


def measure(
    predictor: Predictor,
    task: Task,
    *,
    examples: Sequence[Example],
    config: EvaluationConfig,
    on_batch: OnBatch | None = None,
) -> tuple[list[Prediction], Facts]:
    """The model's answers to the examples, and what the metrics take of them."""
    order = sorted(range(len(examples)), key=lambda row: len(examples[row].inputs))
    answers: dict[int, Prediction] = {}
    nll, num_correct, num_targets = 0.0, 0, 0
    for start in range(0, len(examples), config.batch_size):
        rows = order[start : start + config.batch_size]  # alike in length: a batch is decoded
        batch = [examples[row] for row in rows]  # until its longest answer has ended
        arrays = [example.inputs for example in batch]
        said = predictor.predict_arrays(task.name, arrays, beam_size=config.beam_size)
        answers.update(zip(rows, said, strict=True))
        sums = teacher_forced(predictor, task=task.name, examples=batch)
        nll += float(sums.loss)
        num_correct += int(sums.correct)
        num_targets += int(sums.count)
        if on_batch:
            on_batch(task.name, len(answers), len(examples))
    in_order = [answers[row] for row in range(len(examples))]
    return in_order, Facts(
        references=tuple(predictor.decode_target(task.name, e.targets) for e in examples),
        predictions=tuple(answer.text for answer in in_order),
        ranked=tuple(tuple(answer.scores) for answer in in_order),
        nll=nll,
        num_correct=num_correct,
        num_targets=num_targets,
    )


def teacher_forced(
    predictor: Predictor, *, task: str, examples: Sequence[Example]
) -> losses.TargetSums:
    """Sums over the true tokens (or classes) of a batch, each given the true ones before it."""
    spec = predictor.task(task)
    inputs, input_lengths = predictor.to_batch(spec.inputs, [e.inputs for e in examples])
    targets, target_lengths = predictor.to_batch(spec.targets, [e.targets for e in examples])
    with torch.inference_mode():
        outputs = predictor.model(
            task=task,
            inputs=inputs,
            input_lengths=input_lengths,
            targets=targets,
            target_lengths=target_lengths,
        )
        return losses.target_sums(
            spec.spec.loss, outputs.logits, targets, groups=spec.spec.output_groups
        )


def fit_trivial(predictor: Predictor, train: Manifest, *, max_examples: int) -> Trivial:
    """Fits a task's trivial predictors on its training split, the first `max_examples` of it."""
    task, examples = train.task, list(_examples(train, limit=max_examples))
    pairs = [
        Pair(
            _text(task.inputs, example.inputs, predictor=predictor),
            predictor.decode_target(task.name, example.targets),
        )
        for example in examples
    ]
    num_outputs = predictor.task(task.name).spec.num_outputs
    vocabulary = predictor.vocabulary
    size = num_outputs or (vocabulary.size if vocabulary else 1)
    tokens = BigramModel((e.targets.tolist() for e in examples), vocab_size=size)
    return Trivial(load_baseline(task.baseline)(pairs), tokens)


def trivial_facts(
    predictor: Predictor, task: Task, *, trivial: Trivial, examples: Sequence[Example]
) -> Facts:
    """What the trivial predictors say of the same examples."""
    inputs = (_text(task.inputs, example.inputs, predictor=predictor) for example in examples)
    ranked = tuple(trivial.answer(text) for text in inputs)
    tokens = trivial.tokens.score(example.targets.tolist() for example in examples)
    return Facts(
        references=tuple(predictor.decode_target(task.name, e.targets) for e in examples),
        predictions=tuple(answers[0] for answers in ranked),
        ranked=ranked,
        nll=tokens.nll,
        num_correct=tokens.num_correct,
        num_targets=tokens.num_targets,
    )


def _open(predictor: Predictor, *, task: str, data_dir: Path, split: Split) -> tuple[Manifest, ...]:
    """The task's training split, then the splits to measure on, checked against the model."""
    train = open_manifest(shard_folder(data_dir, task=task, split="train"))
    splits = [split]
    if split == "test" and _HARD in train.task.source.splits:
        splits.append(_HARD)
    found = [open_manifest(shard_folder(data_dir, task=task, split=name)) for name in splits]
    for manifest in (train, *found):
        _check_features(predictor, manifest)
    return train, *found


def _check_features(predictor: Predictor, manifest: Manifest) -> None:
    known = predictor.task(manifest.task.name)
    for side in ("inputs", "targets"):
        built, trained = getattr(manifest.task, side), getattr(known, side)
        if built != trained:
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


def _examples(manifest: Manifest, *, limit: int | None) -> Iterator[Example]:
    """The first examples of a split, in order."""
    reader = ShardReader([manifest])
    num_examples = min(manifest.num_examples, limit or manifest.num_examples)
    for start in range(0, num_examples, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, num_examples))
        yield from reader.read(manifest.task.name, rows=rows)


def _text(feature: Feature, array: np.ndarray, *, predictor: Predictor) -> str:
    """An input as text, "" where it is none: baselines do not look at pictures."""
    if feature.modality != "text":
        return ""
    decode = modalities.load(feature.modality).decode
    return decode(array, feature=feature, vocabulary=predictor.vocabulary)


def _score(name: str, facts: Facts, *, trivial: Facts) -> Score:
    metric = load_metric(name)
    return Score(
        metric=name,
        label=metric.label,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        value=metric(facts),
        baseline=metric(trivial),
    )
