"""Trivial predictors: what each task must beat. Named as in `Task.baseline`.

A baseline learns from the training split alone and answers from the input alone: it hands on a
function from the input's text to answers, best first. What is measured with true tokens given
(token accuracy, log-perplexity) has its own trivial predictor, the bigram model.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipelines.errors import UnknownNameError
from pipelines.modalities.tree import Tree, linearise, read_linearised

_START = -1  # stands before the first token

Answer = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Pair:
    """One training example as a person reads it; `input` is "" where it is no text."""

    input: str
    target: str


def majority_class(train: Sequence[Pair]) -> Answer:
    """Always the classes in falling order of training frequency."""
    ranked = _by_frequency(pair.target for pair in train)
    return lambda _: ranked


def most_frequent_target(train: Sequence[Pair]) -> Answer:
    """Always the most frequent training target; the first in the alphabet of equals."""
    best = _by_frequency(pair.target for pair in train)[:1]
    return lambda _: best


def copy_source(train: Sequence[Pair]) -> Answer:
    """The input itself: names are often the same in two languages."""
    return lambda source: (source,)


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


BASELINES = (majority_class, most_frequent_target, copy_source, right_branching_tree)


def load_baseline(name: str) -> Callable[[Sequence[Pair]], Answer]:
    """The baseline of a name.

    Raises:
        UnknownNameError: there is none.
    """
    known = {function.__name__: function for function in BASELINES}
    if name not in known:
        raise UnknownNameError("baseline", name, tuple(known))
    return known[name]


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

    Fitted on training targets; for a class (one token) it is the class's share.

    Args:
        sequences: token ids of training targets, end token included.
        vocab_size: V, ids or classes.
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
