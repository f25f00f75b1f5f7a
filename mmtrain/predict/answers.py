"""Answers: what a model's scores say, for each kind of target that has a fixed number of them.

A kind is a target's `readout`. It turns the scores of a batch into arrays that metrics read
(`measured`) and into predictions that a person reads (`answers`), and a true array into the same
words (`text`). Sequences of tokens are no such kind; they are decoded (`predictor.py`).
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mmtrain.losses import scores_of
from mmtrain.models.model import TaskSpec
from pipelines import modalities
from pipelines.modalities import Feature
from pipelines.names import load_object

PRESENT = 0.5  # probability from which one of several classes is said to be there
NOTHING = "nothing"  # in place of the names of no classes at all
_MAX_CLASSES_SHOWN = 5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer.

    Args:
        text: the answer in the target's form, on a line: text, class names, linearised tree,
            values with their names, the share of each class in a mask.
        log_prob: natural log of its probability, summed over its tokens, classes or pixels; None
            where it has none.
        scores: probabilities of the five likeliest classes, best first, or of the class of each
            part; else empty.
        tree: the bracketed tree with its words, where the answer is a tree over the sentence.
        labels: names of the classes that are there, for several at once or one of each part.
        values: predicted values by name, in their own units.
        mask: PNG file whose pixel values are class ids.
    """

    text: str
    log_prob: float | None
    scores: Mapping[str, float] = field(default_factory=dict)
    tree: str | None = None
    labels: tuple[str, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    mask: bytes | None = None

    def __str__(self) -> str:
        return self.tree or self.text

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON; a mask in base64."""
        mask = base64.b64encode(self.mask).decode("ascii") if self.mask is not None else None
        return {**asdict(self), "labels": list(self.labels), "mask": mask}


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of target is answered. All functions are of one batch, or of one array.

    Args:
        measured: logits to the array that metrics read, (B, ...); see `metrics.Facts.scores`.
        answers: logits to predictions, in the order of the batch.
        text: a target array as a person reads it.
    """

    measured: Callable[[Tensor, TaskSpec], np.ndarray]
    answers: Callable[[Tensor, TaskSpec, Feature], list[Prediction]]
    text: Callable[[np.ndarray, Feature], str]


def load_kind(feature: Feature) -> Kind:
    """The kind of a target, by its `readout`.

    Raises:
        UnknownNameError: scores of such a target cannot be read.
        OwnCodeError: the user's file is gone, does not run, or names something else.
    """
    return load_object(feature.readout, kind="kind of target", shipped=_KINDS, of=Kind)


# ---- one class of several


def _class_log_probs(logits_BV: Tensor, spec: TaskSpec) -> Tensor:
    """Of classes that exclude each other, or each by itself where the loss says so."""
    if scores_of(spec) == "sigmoid":
        return functional.logsigmoid(logits_BV.float())
    return logits_BV.float().log_softmax(dim=-1)


def _probabilities(logits_BV: Tensor, spec: TaskSpec) -> np.ndarray:
    return _class_log_probs(logits_BV, spec).exp().cpu().numpy()


def _label_answers(logits_BV: Tensor, spec: TaskSpec, feature: Feature) -> list[Prediction]:
    log_probs_BV = _class_log_probs(logits_BV, spec)
    sorted_BV = log_probs_BV.sort(dim=-1, descending=True, stable=True)  # of equals the first
    values_BV, ids_BV = (part[:, :_MAX_CLASSES_SHOWN].tolist() for part in sorted_BV)
    answers = []
    for scores, ids in zip(values_BV, ids_BV, strict=True):
        names = [_label_text(np.array(number), feature) for number in ids]
        probabilities = dict(zip(names, np.exp(scores).tolist(), strict=True))
        answers.append(Prediction(names[0], scores[0], probabilities))
    return answers


def _label_text(array: np.ndarray, feature: Feature) -> str:
    return str(_decoded(array, feature))


# ---- any number of classes


def _multilabel_answers(logits_BV: Tensor, spec: TaskSpec, feature: Feature) -> list[Prediction]:
    probabilities_BV = _probabilities(logits_BV, spec)
    said_BV = probabilities_BV >= PRESENT
    log_probs_B = functional.logsigmoid(logits_BV.float().abs()).sum(-1).tolist()
    names = _names(feature)
    answers = []
    rows = zip(probabilities_BV, said_BV, log_probs_B, strict=True)
    for probabilities, said, log_prob in rows:
        best = np.argsort(-probabilities, kind="stable")[:_MAX_CLASSES_SHOWN]
        scores = {names[place]: float(probabilities[place]) for place in best}
        labels = tuple(name for name, there in zip(names, said, strict=True) if there)
        answers.append(Prediction(", ".join(labels) or NOTHING, log_prob, scores, labels=labels))
    return answers


def _multilabel_text(array: np.ndarray, feature: Feature) -> str:
    return ", ".join(_decoded_as(list, array, feature)) or NOTHING


# ---- one class of each part


def _labels_measured(logits_BV: Tensor, spec: TaskSpec) -> np.ndarray:
    parts = logits_BV.split(list(spec.output_groups), dim=-1)
    return torch.stack([part.argmax(-1) for part in parts], dim=-1).cpu().numpy()


def _labels_answers(logits_BV: Tensor, spec: TaskSpec, feature: Feature) -> list[Prediction]:
    parts = logits_BV.float().split(list(spec.output_groups), dim=-1)
    best_BK = torch.stack([part.log_softmax(-1).amax(-1) for part in parts], dim=-1).tolist()
    answers = []
    for ids, log_probs in zip(_labels_measured(logits_BV, spec), best_BK, strict=True):
        names = _decoded_as(dict, ids, feature)
        probabilities = np.exp(log_probs).tolist()
        scores = {
            f"{part} {name}": probability
            for (part, name), probability in zip(names.items(), probabilities, strict=True)
        }
        text, labels = _labels_text(ids, feature), tuple(names.values())
        answers.append(Prediction(text, sum(log_probs), scores, labels=labels))
    return answers


def _labels_text(array: np.ndarray, feature: Feature) -> str:
    names = _decoded_as(dict, array, feature)
    return ", ".join(f"{part} {name}" for part, name in names.items())


# ---- values


def _values(logits_BK: Tensor, spec: TaskSpec) -> np.ndarray:
    return logits_BK.float().cpu().numpy()


def _numbers_answers(logits_BK: Tensor, spec: TaskSpec, feature: Feature) -> list[Prediction]:
    return [
        Prediction(_numbers_text(row, feature), None, values=_decoded_as(dict, row, feature))
        for row in _values(logits_BK, spec)
    ]


def _numbers_text(array: np.ndarray, feature: Feature) -> str:
    values = _decoded_as(dict, array, feature)
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


# ---- a class for each pixel


def _elements(logits_BYXV: Tensor, spec: TaskSpec) -> np.ndarray:
    return logits_BYXV.argmax(-1).to(torch.uint8).cpu().numpy()


def _mask_answers(logits_BYXV: Tensor, spec: TaskSpec, feature: Feature) -> list[Prediction]:
    best_BYX = logits_BYXV.float().log_softmax(dim=-1).amax(-1)
    log_probs_B = best_BYX.flatten(1).sum(-1).tolist()
    return [
        Prediction(_mask_text(ids, feature), log_prob, mask=_decoded_as(bytes, ids, feature))
        for ids, log_prob in zip(_elements(logits_BYXV, spec), log_probs_B, strict=True)
    ]


def _mask_text(array: np.ndarray, feature: Feature) -> str:
    """Classes by the share of the pixels that they take, largest first."""
    ids, counts = np.unique(array, return_counts=True)
    names, order = _names(feature), np.argsort(-counts, kind="stable")
    return ", ".join(f"{names[ids[i]]} {100 * counts[i] / array.size:.0f} %" for i in order)


_KINDS: Mapping[str, Kind] = {
    "label": Kind(_probabilities, _label_answers, _label_text),
    "multilabel": Kind(_probabilities, _multilabel_answers, _multilabel_text),
    "labels": Kind(_labels_measured, _labels_answers, _labels_text),
    "numbers": Kind(_values, _numbers_answers, _numbers_text),
    "mask": Kind(_elements, _mask_answers, _mask_text),
}


def _names(feature: Feature) -> tuple[str, ...]:
    """Class names of a feature that has them."""
    names: tuple[str, ...] = feature.classes  # type: ignore[attr-defined]  # its kind has them
    return names


def _decoded(array: np.ndarray, feature: Feature) -> object:
    return modalities.load(feature.modality).decode(array, feature=feature, vocabulary=None)


def _decoded_as(kind: type[T], array: np.ndarray, feature: Feature) -> T:
    value = _decoded(array, feature)
    assert isinstance(value, kind)
    return value
