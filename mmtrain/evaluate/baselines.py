"""Trivial predictors: what each task must beat. Named as in `Task.baseline`.

A baseline learns from the training split alone. Of text, it answers from the input alone: it hands
on a function from the input's text to answers, best first; what is measured with true tokens given
(token accuracy, log-perplexity) has its own trivial predictor, the bigram model. Of targets with a
fixed number of scores, it hands on the scores that it gives every example, as a model's head would.
One of a user's own file is made likewise, a `Baseline`, and named `my_baselines.py:my_baseline`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mmtrain.losses import scores_of
from mmtrain.models.config import TaskSpec
from pipelines.errors import MMTrainError
from pipelines.modalities import Feature
from pipelines.modalities.tree import Tree, linearise, read_linearised
from pipelines.names import load_object

_START = -1  # stands before the first token

Answer = Callable[[str], tuple[str, ...]]


class BaselineError(MMTrainError):
    """A baseline that cannot be fitted to a task's targets."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One training example as a person reads it; `input` is "" where it is no text."""

    input: str
    target: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """A trivial predictor.

    Args:
        fit: what it learns from the training split. Of targets that are text: from pairs to an
            `Answer`. Of others: from their arrays, and the task by name `spec`, to the scores that
            it gives every example, shaped as a head's for one example.
        of: modalities of targets with a fixed number of scores that it takes; none: texts.
    """

    fit: Callable[..., Any]
    of: tuple[str, ...] = ()


@Baseline
def most_frequent_target(train: Sequence[Pair]) -> Answer:
    """Always the most frequent training target; the first in the alphabet of equals."""
    best = _by_frequency(pair.target for pair in train)[:1]
    return lambda _: best


@Baseline
def copy_source(train: Sequence[Pair]) -> Answer:
    """The input itself: names are often the same in two languages."""
    return lambda source: (source,)


@Baseline
def right_branching_tree(train: Sequence[Pair]) -> Answer:
    """Every word opens a phrase that holds the rest: (S DT (X NN (X VBD ) ) ).

    The outermost label, the inner label and a word's part of speech are the most frequent ones of
    training; a word not seen has the most frequent of all.
    """
    trees = [(pair.input.split(), read_linearised(pair.target)) for pair in train]
    root = _by_frequency(tree.label for _, tree in trees)[0]
    inner = _by_frequency(label for _, tree in trees for label in _inner_labels(tree)) or (root,)
    tag_counts: dict[str, Counter[str]] = {}
    for words, tree in trees:
        for word, tag in zip(words, tree.tags(), strict=True):
            tag_counts.setdefault(word, Counter())[tag.label] += 1
    usual = _by_frequency(tag.label for _, tree in trees for tag in tree.tags())[0]
    tags = {word: _most_frequent(counts) for word, counts in tag_counts.items()}

    def answer(sentence: str) -> tuple[str, ...]:
        branches: tuple[Tree, ...] = ()
        for word in reversed(sentence.split()):
            tag = Tree(tags.get(word, usual))
            branches = (tag, Tree(inner[0], branches)) if branches else (tag,)
        return (linearise(Tree(root, branches)),)

    return answer


@partial(Baseline, of=("label", "labels"))
def majority_class(targets: Iterable[np.ndarray], *, spec: TaskSpec) -> np.ndarray:
    """Always the training frequency of each class, of each part where there are several: (V,).

    p(v) = (c(v) + (c(v) + 1) / (N + V)) / (N + 1)        as `BigramModel`, for a single token
    """
    rows_NK = np.stack([np.atleast_1d(target) for target in targets])
    groups = spec.output_groups or (spec.num_outputs or 0,)
    shares = []
    for ids_N, size in zip(rows_NK.T, groups, strict=True):
        counts_V = np.bincount(ids_N, minlength=size)
        alone_V = (counts_V + 1) / (len(ids_N) + size)
        shares.append((counts_V + alone_V) / (len(ids_N) + 1))
    return _scores(np.concatenate(shares), spec=spec)


@partial(Baseline, of=("multilabel",))
def label_frequency(targets: Iterable[np.ndarray], *, spec: TaskSpec) -> np.ndarray:
    """Always the share of training examples that have each class, (c + 1) / (N + 2): (V,)."""
    rows_NV = np.stack(list(targets))
    return _scores((rows_NV.sum(axis=0) + 1) / (len(rows_NV) + 2), spec=spec)


@partial(Baseline, of=("numbers",))
def mean_value(targets: Iterable[np.ndarray], *, spec: TaskSpec) -> np.ndarray:
    """Always the mean of each value over the training examples: (K,)."""
    return np.stack(list(targets)).mean(axis=0, dtype=np.float64)


@partial(Baseline, of=("mask",))
def majority_element(targets: Iterable[np.ndarray], *, spec: TaskSpec) -> np.ndarray:
    """Always the training frequency of each class at each pixel, (c + 1) / (N + V): (Y, X, V)."""
    counts_YXV, num_examples = np.zeros(1, dtype=np.int64), 0
    classes_V = np.arange(spec.num_outputs or 0)
    for target_YX in targets:
        counts_YXV = counts_YXV + (target_YX[..., None] == classes_V)
        num_examples += 1
    return _scores((counts_YXV + 1) / (num_examples + len(classes_V)), spec=spec)


def _scores(shares: np.ndarray, *, spec: TaskSpec) -> np.ndarray:
    """What a head would give for these probabilities under the task's loss."""
    if scores_of(spec) == "sigmoid":
        return np.log(shares) - np.log1p(-shares)
    return np.log(shares)


SHIPPED = {
    value.fit.__name__: value for value in list(globals().values()) if isinstance(value, Baseline)
}


def load_baseline(name: str) -> Baseline:
    """The baseline of a name, or of `FILE.py:NAME`.

    Raises:
        UnknownNameError: there is none; tells the nearest.
        OwnCodeError: the user's file is gone or fails, or it is no `Baseline`.
    """
    return load_object(name, kind="baseline", shipped=SHIPPED, of=Baseline)


def check_baseline(name: str, *, feature: Feature, task: str) -> None:
    """Refuses a baseline that does not take a task's targets.

    Raises:
        UnknownNameError: there is no such baseline.
        BaselineError: it does not take them; names those that do.
        OwnCodeError: the user's file is gone, does not run, or names something else.
    """

    def takes(key: str, baseline: Baseline) -> bool:
        if key in feature.baselines:
            return True
        return feature.modality in baseline.of if baseline.of else feature.num_outputs is None

    if not takes(name, load_baseline(name)):
        fitting = [key for key, baseline in SHIPPED.items() if takes(key, baseline)]
        raise BaselineError(
            f"task {task}: baseline {name!r} does not take {feature.modality} targets; set "
            f"baseline to {' or '.join(map(repr, fitting)) or 'one of your own'}"
        )


def _by_frequency(values: Iterable[str]) -> tuple[str, ...]:
    counts = Counter(values)
    return tuple(sorted(counts, key=lambda value: (-counts[value], value)))


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda value: (-counts[value], value))


def _inner_labels(tree: Tree) -> Iterator[str]:
    """Labels of the constituents inside a tree."""
    for child in tree.children:
        if child.children:
            yield child.label
            yield from _inner_labels(child)


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How true tokens were predicted: nats summed, most likely ones right, all."""

    nll: float
    num_correct: int
    num_targets: int


class BigramModel:
    """Token given the true token before it, mixed with the token alone.

        p(b | a) = (c(a, b) + p(b)) / (c(a) + 1),   p(b) = (c(b) + 1) / (c + V)

    Fitted on training targets.

    Args:
        sequences: token ids of training targets, end token included.
        vocab_size: V.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], *, vocab_size: int) -> None:
        self._pairs: dict[int, Counter[int]] = {}
        self._tokens: Counter[int] = Counter()
        self._vocab_size = vocab_size
        for sequence in sequences:
            self._tokens.update(sequence)
            for before, token in zip((_START, *sequence), sequence, strict=False):
                self._pairs.setdefault(before, Counter())[token] += 1
        self._total = self._tokens.total()
        self._usual = _most_common(self._tokens)
        self._likely = {before: _most_common(after) for before, after in self._pairs.items()}
        self._seen = {before: after.total() for before, after in self._pairs.items()}

    def score(self, sequences: Iterable[Sequence[int]]) -> TokenScore:
        """Teacher-forced scores of true sequences."""
        nll, num_correct, num_targets = 0.0, 0, 0
        for sequence in sequences:
            for before, token in zip((_START, *sequence), sequence, strict=False):
                nll -= math.log(self._probability(token, before=before))
                num_correct += token == self._likely.get(before, self._usual)
                num_targets += 1
        return TokenScore(nll, num_correct, num_targets)

    def _probability(self, token: int, *, before: int) -> float:
        alone = (self._tokens[token] + 1) / (self._total + self._vocab_size)
        after = self._pairs.get(before, Counter())
        return (after[token] + alone) / (self._seen.get(before, 0) + 1)


def _most_common(counts: Counter[int]) -> int:
    return min(counts, key=lambda token: (-counts[token], token), default=_START)
