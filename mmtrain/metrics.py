"""Metrics: how good predictions are. Each is one function of `Facts`, named as in `Task.metrics`.

A metric also says what its number means (`Metric`: unit, direction, best), so that tables, reports
and baselines ask the metric and hold no list of their own. Shares are in percent; only
`log_perplexity` is in nats a token, positive, lower being better (the sources print its negative).
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import jiwer
import sacrebleu

from pipelines.errors import MMTrainError, UnknownNameError
from pipelines.modalities.tree import Tree, labelled_spans, linearise, read_linearised

Unit = Literal["%", "nats"]


class MetricError(MMTrainError):
    """A metric cannot be computed from the facts at hand."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a task's metrics are computed from, over the examples of a split.

    Args:
        references: true targets as a person reads them, one for each example.
        predictions: predicted targets, in the same order and form.
        ranked: classes in falling order of score, for tasks with classes; else empty.
        nll: negative log-likelihood summed over all true tokens (or classes), teacher-forced, nats.
        num_correct: true tokens (or classes) that were the most likely one, teacher-forced.
        num_targets: true tokens (or classes), padding left out.
    """

    references: tuple[str, ...]
    predictions: tuple[str, ...]
    ranked: tuple[tuple[str, ...], ...] = ()
    nll: float = 0.0
    num_correct: int = 0
    num_targets: int = 0


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's function with what its number means; called like the function."""

    name: str
    label: str
    unit: Unit
    higher_is_better: bool
    compute: Callable[[Facts], float]

    def __call__(self, facts: Facts) -> float:
        if not facts.references:
            raise MetricError(f"metric {self.name}: no examples; is the split empty?")
        return self.compute(facts)


def metric(
    label: str, *, unit: Unit = "%", higher_is_better: bool = True
) -> Callable[[Callable[[Facts], float]], Metric]:
    """Makes a function of `Facts` a `Metric` of the function's name."""

    def named(function: Callable[[Facts], float]) -> Metric:
        return Metric(function.__name__, label, unit, higher_is_better, function)

    return named


def load_metric(name: str) -> Metric:
    """The metric of a name.

    Raises:
        UnknownNameError: there is none.
    """
    found = getattr(sys.modules[__name__], name, None)
    if not isinstance(found, Metric):
        raise UnknownNameError("metric", name, metric_names())
    return found


def metric_names() -> tuple[str, ...]:
    """Names of all metrics."""
    here = vars(sys.modules[__name__]).values()
    return tuple(sorted(value.name for value in here if isinstance(value, Metric)))


@metric("WER", higher_is_better=False)
def wer(facts: Facts) -> float:
    """Word errors a true word over the whole split, 100 (S + D + I) / N; may exceed 100."""
    words = jiwer.process_words(list(facts.references), list(facts.predictions))
    return 100.0 * words.wer


@metric("accuracy")
def accuracy(facts: Facts) -> float:
    """Examples whose most likely class is the true one."""
    return _share(a == b for a, b in zip(facts.references, facts.predictions, strict=True))


@metric("top-5 accuracy")
def top5_accuracy(facts: Facts) -> float:
    """Examples whose true class is among the five most likely."""
    pairs = zip(facts.references, facts.ranked, strict=True)
    return _share(reference in ranked[:5] for reference, ranked in pairs)


@metric("exact")
def exact(facts: Facts) -> float:
    """Examples predicted without any error (exact trees, for parsing)."""
    return _share(a == b for a, b in zip(facts.references, facts.predictions, strict=True))


@metric("BLEU")
def bleu(facts: Facts) -> float:
    """Corpus BLEU-4, sacrebleu's defaults: 13a tokens, mixed case, exponential smoothing."""
    return sacrebleu.corpus_bleu(list(facts.predictions), [list(facts.references)]).score


@metric("chrF")
def chrf(facts: Facts) -> float:
    """Corpus chrF2, sacrebleu's defaults: character 6-grams, no word n-grams, beta 2."""
    return sacrebleu.corpus_chrf(list(facts.predictions), [list(facts.references)]).score


@metric("token accuracy")
def token_accuracy(facts: Facts) -> float:
    """True tokens that were the most likely one given the true tokens before them."""
    return 100.0 * facts.num_correct / _num_targets(facts)


@metric("log-perplexity", unit="nats", higher_is_better=False)
def log_perplexity(facts: Facts) -> float:
    """-(1/N) sum log p(true token | true tokens before it): mean over all tokens, end token too."""
    return facts.nll / _num_targets(facts)


@metric("bracket F1")
def bracket_f1(facts: Facts) -> float:
    """Labelled bracket F1 over the split by EVALB's rules with its usual parameters.

        P = M / predicted,  R = M / true,  F1 = 2 P R / (P + R)    sums over all sentences

    EVALB: https://nlp.cs.nyu.edu/evalb/, COLLINS.prm. M counts equal (label, start, end) as
    multisets. `labelled_spans` says what is a bracket: no parts of speech, no root, punctuation
    has no place, PRT counts as ADVP. In one thing stricter than EVALB, which passes over a
    sentence whose prediction is no tree over its words: here it counts, with no correct bracket.
    """
    matched = num_predicted = num_true = 0
    for reference, predicted in zip(facts.references, facts.predictions, strict=True):
        true, guess = read_linearised(reference), read_linearised(predicted)
        true_spans, guess_spans = labelled_spans(true), labelled_spans(guess)
        num_true += true_spans.total()
        num_predicted += guess_spans.total()
        if linearise(guess) == predicted and _num_words(guess) == _num_words(true):
            matched += (true_spans & guess_spans).total()
    return 200.0 * matched / max(1, num_predicted + num_true)


def _num_words(tree: Tree) -> int:
    return sum(1 for _ in tree.tags())


def _share(hits: Iterable[bool]) -> float:
    """Share of true values, in percent."""
    values = list(hits)
    return 100.0 * sum(values) / len(values)


def _num_targets(facts: Facts) -> int:
    if not facts.num_targets:
        raise MetricError("no teacher-forced pass was made: token metrics have nothing to count")
    return facts.num_targets
