"""What a model, and a trivial predictor beside it, say of the examples of a split: `Facts`.

Of targets with a fixed number of scores, one pass gives answers and facts, and the trivial
predictor's scores go the same way. Texts are decoded as a user would get them; their token metrics
come from a second pass that is given the true tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmtrain.bundle import BundleTask
from mmtrain.evaluate.baselines import BigramModel, Pair, load_baseline
from mmtrain.evaluate.metrics import Facts
from mmtrain.losses import TargetSums, load_loss
from mmtrain.predict.answers import Prediction, load_kind
from mmtrain.predict.predictor import Predictor
from pipelines import modalities
from pipelines.modalities import Feature
from pipelines.shards import Example, Manifest, ShardReader
from pipelines.task import Task

OnBatch = Callable[[str, int, int], None]  # task, examples done, examples in all
Trivial = Callable[[Sequence[Example]], Facts]  # a fitted trivial predictor

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


class ScoreTally:
    """Adds up a model's answers to examples whose target has a fixed number of scores."""

    def __init__(self, task: BundleTask) -> None:
        self._task, self._kind = task, load_kind(task.targets)
        loss = load_loss(task.spec.loss)
        self._likelihood = (loss.likelihood or loss) if loss.scores != "values" else None
        self._scores: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []
        self._answers: list[Prediction] = []
        self._sums = np.zeros(3)

    def add(self, logits: Tensor, targets: Tensor) -> list[Prediction]:
        """One batch: its answers."""
        spec, feature = self._task.spec, self._task.targets
        if self._likelihood:
            sums = self._likelihood.measure(logits, targets, groups=spec.output_groups)
            self._sums += [float(sums.loss), float(sums.correct), int(sums.count)]
        self._scores.append(self._kind.measured(logits, spec))
        self._targets.append(targets.cpu().numpy())
        answers = self._kind.answers(logits, spec, feature)
        self._answers += answers
        return answers

    def facts(self) -> Facts:
        """All batches; examples in the order in which they were added."""
        scores, targets = np.concatenate(self._scores), np.concatenate(self._targets)
        nll, num_correct, num_targets = self._sums
        return Facts(
            references=tuple(self._kind.text(row, self._task.targets) for row in targets),
            predictions=tuple(answer.text for answer in self._answers),
            ranked=tuple(tuple(answer.scores) for answer in self._answers),
            nll=nll,
            num_correct=num_correct,
            num_targets=int(num_targets),
            scores=scores,
            targets=targets,
        )


def measure(
    predictor: Predictor,
    task: Task,
    *,
    examples: Sequence[Example],
    config: EvaluationConfig,
    on_batch: OnBatch | None = None,
) -> tuple[list[Prediction], Facts]:
    """The model's answers to the examples in their order, and what the metrics take of them.

    Examples alike in length are answered together: a batch of texts is decoded until its longest
    answer has ended.
    """
    order = sorted(range(len(examples)), key=lambda row: len(examples[row].inputs))
    alike = [examples[row] for row in order]
    batches = [
        alike[start : start + config.batch_size]
        for start in range(0, len(alike), config.batch_size)
    ]
    has_scores = predictor.task(task.name).spec.num_outputs is not None
    answer = _scored if has_scores else _decoded
    answers, facts = answer(predictor, task.name, batches, config=config, on_batch=on_batch)
    places = np.argsort(order).tolist()
    return [answers[place] for place in places], facts


def _scored(
    predictor: Predictor,
    task: str,
    batches: Sequence[Sequence[Example]],
    *,
    config: EvaluationConfig,
    on_batch: OnBatch | None,
) -> tuple[list[Prediction], Facts]:
    tally, answers = ScoreTally(predictor.task(task)), list[Prediction]()
    for batch in batches:
        targets, _ = predictor.to_batch(predictor.task(task).targets, [e.targets for e in batch])
        logits = predictor.logits(task, [example.inputs for example in batch])
        answers += tally.add(logits, targets)
        _tell(on_batch, task, done=len(answers), batches=batches)
    return answers, tally.facts()


def _decoded(
    predictor: Predictor,
    task: str,
    batches: Sequence[Sequence[Example]],
    *,
    config: EvaluationConfig,
    on_batch: OnBatch | None,
) -> tuple[list[Prediction], Facts]:
    answers, references = list[Prediction](), list[str]()
    nll, num_correct, num_targets = 0.0, 0, 0
    for batch in batches:
        arrays = [example.inputs for example in batch]
        decoded = predictor.predict_batch([task], arrays, beam_size=config.beam_size)
        answers += [by_task[task] for by_task in decoded]
        references += [predictor.decode_target(task, example.targets) for example in batch]
        sums = teacher_forced(predictor, task=task, examples=batch)
        nll += float(sums.loss)
        num_correct += int(sums.correct)
        num_targets += int(sums.count)
        _tell(on_batch, task, done=len(answers), batches=batches)
    facts = Facts(
        references=tuple(references),
        predictions=tuple(answer.text for answer in answers),
        nll=nll,
        num_correct=num_correct,
        num_targets=num_targets,
    )
    return answers, facts


def _tell(
    on_batch: OnBatch | None, task: str, *, done: int, batches: Sequence[Sequence[Example]]
) -> None:
    if on_batch:
        on_batch(task, done, sum(map(len, batches)))


def teacher_forced(predictor: Predictor, *, task: str, examples: Sequence[Example]) -> TargetSums:
    """Sums over the targets of a batch; of texts, each token given the true ones before it."""
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
    loss = load_loss(spec.spec.loss)
    loss = loss.likelihood or loss
    return loss.measure(outputs.logits, targets, groups=spec.spec.output_groups)


def fit_trivial(predictor: Predictor, task: Task, *, examples: Iterable[Example]) -> Trivial:
    """Fits a task's trivial predictor on training examples: the facts of others."""
    if predictor.task(task.name).spec.num_outputs is not None:
        return _fit_scores(predictor, task, examples=examples)
    return _fit_text(predictor, task, examples=list(examples))


def _fit_scores(predictor: Predictor, task: Task, *, examples: Iterable[Example]) -> Trivial:
    """The same scores for every example; they go the way of a model's."""
    known = predictor.task(task.name)
    fit = load_baseline(task.baseline).fit
    logits = torch.from_numpy(fit((e.targets for e in examples), spec=known.spec)).float()

    def facts_of(examples: Sequence[Example]) -> Facts:
        tally = ScoreTally(known)
        for start in range(0, len(examples), _CHUNK):
            arrays = [example.targets for example in examples[start : start + _CHUNK]]
            targets, _ = predictor.to_batch(known.targets, arrays)
            tally.add(logits.expand(len(arrays), *logits.shape), targets.cpu())
        return tally.facts()

    return facts_of


def _fit_text(predictor: Predictor, task: Task, *, examples: Sequence[Example]) -> Trivial:
    """Whole answers by the task's baseline, tokens with the true ones given by a bigram model."""
    pairs = [
        Pair(
            _text(task.inputs, example.inputs, predictor=predictor),
            predictor.decode_target(task.name, example.targets),
        )
        for example in examples
    ]
    vocabulary = predictor.vocabulary
    answer = load_baseline(task.baseline).fit(pairs)
    bigrams = BigramModel(
        (example.targets.tolist() for example in examples),
        vocab_size=vocabulary.size if vocabulary else 1,
    )

    def facts_of(examples: Sequence[Example]) -> Facts:
        inputs = (_text(task.inputs, example.inputs, predictor=predictor) for example in examples)
        tokens = bigrams.score(example.targets.tolist() for example in examples)
        return Facts(
            references=tuple(predictor.decode_target(task.name, e.targets) for e in examples),
            predictions=tuple(answer(text)[0] for text in inputs),
            nll=tokens.nll,
            num_correct=tokens.num_correct,
            num_targets=tokens.num_targets,
        )

    return facts_of


def read_examples(manifest: Manifest, *, limit: int | None) -> Iterator[Example]:
    """The first examples of a split, in order."""
    reader = ShardReader([manifest])
    num_examples = min(manifest.num_examples, limit or manifest.num_examples)
    for start in range(0, num_examples, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, num_examples))
        yield from reader.read(manifest.task.name, rows=rows)


def _text(feature: Feature, array: np.ndarray, *, predictor: Predictor) -> str:
    """An input as text, "" where it is none: baselines do not look at pictures."""
    if not modalities.is_written(feature.modality):
        return ""
    decode = modalities.load(feature.modality).decode
    return decode(array, feature=feature, vocabulary=predictor.vocabulary)
