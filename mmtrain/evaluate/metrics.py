"""Metrics: how good predictions are. Each is one function of `Facts`, named as in `Task.metrics`.

A metric also says what its number means (`Metric`: unit, direction), so that tables, reports and
baselines ask the metric and hold no list of their own. One of a user's own file is made likewise,
by `@metric(...)`, and named `my_metrics.py:my_metric`; its results go by the function's name.
Shares are in percent; `log_perplexity` is in nats a token, positive, lower being better (the
sources print its negative).

Some metrics read texts, as a person would; others read the arrays of targets with a fixed number of
scores. `check_metrics` refuses a metric that a task's targets have nothing for.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import jiwer
import numpy as np
import sacrebleu

from mmtrain.predict.answers import PRESENT
from pipelines.errors import MMTrainError
from pipelines.modalities import Feature
from pipelines.modalities.numbers import BOX
from pipelines.modalities.tree import Tree, labelled_spans, linearise, read_linearised
from pipelines.names import load_object

Unit = Literal["%", "nats", ""]


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
        num_targets: true tokens (or classes), padding left out; 0 where there is no probability.
        scores: of targets with a fixed number of scores, by modality: probabilities (N, V) of
            label and multilabel, class ids (N, K) of labels, values (N, K) of numbers, class ids
            (N, Y, X) of mask; else None.
        targets: what they should be: (N, 1), (N, V), (N, K), (N, K), (N, Y, X).
    """

    references: tuple[str, ...]
    predictions: tuple[str, ...]
    ranked: tuple[tuple[str, ...], ...] = ()
    nll: float = 0.0
    num_correct: float = 0
    num_targets: int = 0
    scores: np.ndarray | None = None
    targets: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's function with what its number means; called like the function.

    Args:
        name: of its results.
        label: as a person calls it.
        unit: of its number.
        higher_is_better: whether a larger number is.
        compute: the function.
        of: modalities of targets that it can be taken of; none named: any but `not_of`.
        not_of: modalities that it cannot be taken of.
        value_names: names that the values of numbers must have; none named: any.
    """

    name: str
    label: str
    unit: Unit
    higher_is_better: bool
    compute: Callable[[Facts], float]
    of: tuple[str, ...] = ()
    not_of: tuple[str, ...] = ()
    value_names: tuple[str, ...] = ()

    def __call__(self, facts: Facts) -> float:
        if not facts.references:
            raise MetricError(f"metric {self.name}: no examples; is the split empty?")
        return self.compute(facts)


def metric(
    label: str, *, unit: Unit = "%", higher_is_better: bool = True, **fits: tuple[str, ...]
) -> Callable[[Callable[[Facts], float]], Metric]:
    """Makes a function of `Facts` a `Metric` of the function's name; see there for the fields."""
    return lambda function: Metric(
        function.__name__, label, unit, higher_is_better, function, **fits
    )


def load_metric(name: str) -> Metric:
    """The metric of a name, or of `FILE.py:NAME`.

    Raises:
        UnknownNameError: there is none; tells the nearest.
        OwnCodeError: the user's file is gone or fails, or it is no `Metric`.
    """
    return load_object(name, kind="metric", shipped=SHIPPED, of=Metric)


def check_metrics(names: Iterable[str], feature: Feature, *, task: str) -> None:
    """Refuses a metric that a task's targets have nothing for, before anything is trained.

    Raises:
        UnknownNameError: there is no such metric.
        MetricError: it cannot be taken of these targets, or has the name of another.
    """
    for name in names:
        metric = load_metric(name)
        if (metric.of and feature.modality not in metric.of) or feature.modality in metric.not_of:
            takes = f"it takes {' or '.join(metric.of)}" if metric.of else "they have no classes"
            raise MetricError(
                f"task {task}: metric {name!r} is not of {feature.modality} targets; {takes}"
            )
        if metric.value_names and getattr(feature, "names", ()) != metric.value_names:
            wanted = ", ".join(metric.value_names)
            raise MetricError(f"task {task}: metric {name!r} wants values named {wanted}")
        if metric.name in SHIPPED and SHIPPED[metric.name] is not metric:
            raise MetricError(
                f"task {task}: metric {name!r} has the name of a shipped one; rename the function"
            )


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


@metric("token accuracy", not_of=("numbers",))
def token_accuracy(facts: Facts) -> float:
    """True tokens that were the most likely one given the true tokens before them."""
    return 100.0 * facts.num_correct / _num_targets(facts)


@metric("log-perplexity", unit="nats", higher_is_better=False, not_of=("numbers",))
def log_perplexity(facts: Facts) -> float:
    """-(1/N) sum log p(true token | true tokens before it): mean over all tokens, end token too.

    Of classes: a class; of several at once, all of an example together; of several parts, a part;
    of a mask, a pixel.
    """
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


@metric("mean average precision", of=("label", "multilabel"))
def mean_average_precision(facts: Facts) -> float:
    """Area under a class's precision over recall, as a sum of steps; mean over classes.

    AP = sum_k (R_k - R_{k-1}) P_k over the distinct scores; classes that no example has are left
    out. Constant scores give the share of examples that have the class.
    """
    from sklearn.metrics import average_precision_score  # a second to import

    scores_NV, present_NV = _present(facts)
    seen_V = np.flatnonzero(present_NV.any(axis=0))
    if not len(seen_V):
        raise MetricError("metric mean_average_precision: no example has any of the classes")
    return 100.0 * float(
        np.mean([average_precision_score(present_NV[:, v], scores_NV[:, v]) for v in seen_V])
    )


@metric("F1", of=("label", "multilabel"))
def f1(facts: Facts) -> float:
    """2 TP / (2 TP + FP + FN) over all classes and examples; a class is there from 50 % on."""
    scores_NV, present_NV = _present(facts)
    predicted_NV = scores_NV >= PRESENT
    num_predicted_and_true = int(predicted_NV.sum()) + int(present_NV.sum())
    return 200.0 * int((predicted_NV & present_NV).sum()) / max(1, num_predicted_and_true)


@metric("precision at 1", of=("label", "multilabel"))
def precision_at_1(facts: Facts) -> float:
    """Examples whose most likely class is one of the true ones."""
    scores_NV, present_NV = _present(facts)
    best_N = scores_NV.argmax(axis=1)
    return 100.0 * float(present_NV[np.arange(len(best_N)), best_N].mean())


@metric("part accuracy", of=("labels",))
def part_accuracy(facts: Facts) -> float:
    """Parts whose most likely class is the true one; `exact` counts examples with all parts so."""
    ids_NK, true_NK = _arrays(facts)
    return 100.0 * float((ids_NK == true_NK).mean())


@metric("MSE", unit="", higher_is_better=False, of=("numbers",))
def mean_squared_error(facts: Facts) -> float:
    """Squared error, mean over examples and values, each as a share of its range."""
    values_NK, true_NK = _arrays(facts)
    return float(np.square(values_NK.astype(np.float64) - true_NK).mean())


@metric("box IoU", of=("numbers",), value_names=BOX)
def box_iou(facts: Facts) -> float:
    """Area that predicted and true box share over the area of both together, mean over examples.

    Boxes are left, top, right, bottom. One whose edges are the wrong way round has no area.
    """
    predicted_N4, true_N4 = (array.astype(np.float64) for array in _arrays(facts))
    first_N2 = np.maximum(predicted_N4[:, :2], true_N4[:, :2])
    last_N2 = np.minimum(predicted_N4[:, 2:], true_N4[:, 2:])
    shared_N = _areas(np.concatenate([first_N2, last_N2], axis=1))
    union_N = _areas(predicted_N4) + _areas(true_N4) - shared_N
    return 100.0 * float((shared_N / np.maximum(union_N, 1e-12)).mean())


@metric("mean IoU", of=("mask",))
def mean_iou(facts: Facts) -> float:
    """Pixels both said and truly of a class over those said or truly, mean over classes.

    Counted over the whole split; classes that are neither said nor true anywhere are left out.
    """
    ids_NYX, true_NYX = _arrays(facts)
    num_classes = int(max(ids_NYX.max(), true_NYX.max())) + 1
    hit_V = np.bincount(true_NYX[ids_NYX == true_NYX], minlength=num_classes)
    predicted_V = np.bincount(ids_NYX.ravel(), minlength=num_classes)
    true_V = np.bincount(true_NYX.ravel(), minlength=num_classes)
    union_V = predicted_V + true_V - hit_V
    return 100.0 * float((hit_V[union_V > 0] / union_V[union_V > 0]).mean())


@metric("pixel accuracy", of=("mask",))
def element_accuracy(facts: Facts) -> float:
    """Pixels whose most likely class is the true one."""
    ids_NYX, true_NYX = _arrays(facts)
    return 100.0 * float((ids_NYX == true_NYX).mean())


SHIPPED = {value.name: value for value in list(globals().values()) if isinstance(value, Metric)}


def _arrays(facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    assert facts.scores is not None, "a target with a fixed number of scores has its arrays"
    assert facts.targets is not None
    return facts.scores, facts.targets


def _present(facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, V), and which classes are there, bool (N, V)."""
    scores_NV, targets = _arrays(facts)
    if targets.shape != scores_NV.shape:
        targets = targets.reshape(-1, 1) == np.arange(scores_NV.shape[1])
    return scores_NV, targets.astype(bool)


def _areas(boxes_N4: np.ndarray) -> np.ndarray:
    sides_N2 = np.maximum(boxes_N4[:, 2:] - boxes_N4[:, :2], 0.0)
    return sides_N2[:, 0] * sides_N2[:, 1]


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
