"""Prediction: raw values in, answers that a person can read out. No Ray, no DeepSpeed.

What a value goes through is what `build` did to the training examples: the modality's `encode`
and `collate`, the model, and `decode` of what it says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mmtrain import decoding
from mmtrain.export import Bundle, BundleTask, find_bundle, load_bundle
from mmtrain.models.model import MultiTaskModel
from pipelines import modalities
from pipelines.errors import BadExampleError, MMTrainError, UnknownNameError
from pipelines.modalities import Feature
from pipelines.modalities.tree import delinearise, to_brackets
from pipelines.vocabulary import Vocabulary

_MAX_CLASSES_SHOWN = 5


class PredictionError(MMTrainError):
    """A value cannot be predicted from; names it and says why."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer.

    Args:
        text: the answer in the target's form: text, class name, linearised tree.
        log_prob: natural log of its probability, summed over its tokens.
        scores: probabilities of the five likeliest classes, best first; empty for text.
        tree: the bracketed tree with its words, where the answer is a tree over the sentence.
    """

    text: str
    log_prob: float
    scores: Mapping[str, float] = field(default_factory=dict)
    tree: str | None = None

    def __str__(self) -> str:
        return self.tree or self.text

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)


class Predictor:
    """A model with its tasks and vocabulary, ready to answer."""

    def __init__(self, bundle: Bundle, *, device: str | None = None) -> None:
        self.bundle = bundle
        self.tasks: Mapping[str, BundleTask] = bundle.card.tasks
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model: MultiTaskModel = bundle.build_model().to(self.device)

    @classmethod
    def load(
        cls, uri: str | Path, *, device: str | None = None, tracking_uri: str | None = None
    ) -> Self:
        """Loads a model.

        Args:
            uri: a bundle folder, a run folder, or `models:/NAME@ALIAS` of the MLflow registry.
            device: torch device; None takes the GPU where there is one.
            tracking_uri: the registry, for `models:/`; None: as MLflow is set up.

        Raises:
            BundleError: there is no such bundle, or it changed.
        """
        if str(uri).startswith("models:/"):
            from mmtrain.model_registry import download_bundle  # imports MLflow: seconds

            return cls(download_bundle(str(uri), tracking_uri=tracking_uri), device=device)
        return cls(load_bundle(find_bundle(Path(uri))), device=device)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The joint vocabulary; None when no task has text."""
        return self.bundle.vocabulary

    def task(self, name: str) -> BundleTask:
        """The task of a name.

        Raises:
            UnknownNameError: the model has none of that name.
        """
        if name not in self.tasks:
            raise UnknownNameError("task of the model", name, tuple(self.tasks))
        return self.tasks[name]

    def predict(
        self,
        task: str,
        values: Sequence[str | bytes | Path],
        *,
        batch_size: int = 32,
        beam_size: int = 1,
    ) -> list[Prediction]:
        """Answers in the order of the values.

        Args:
            task: name of the task that answers.
            values: texts; for images and sounds, paths (`str` or `Path`) or the files' bytes.
            batch_size: values answered together.
            beam_size: beams of text decoding; 1 is greedy.

        Raises:
            PredictionError: a value cannot be read; the message names it.
            UnknownNameError: the model has no such task.
        """
        spec = self.task(task)
        arrays = [self._encode(value, task=spec) for value in values]
        answers = [
            answer
            for start in range(0, len(arrays), batch_size)
            for answer in self.predict_arrays(
                task, arrays[start : start + batch_size], beam_size=beam_size
            )
        ]
        if spec.targets.modality != "tree":
            return answers
        pairs = zip(answers, values, strict=True)
        return [_with_tree(answer, sentence=str(value)) for answer, value in pairs]

    def predict_arrays(
        self, task: str, arrays: Sequence[np.ndarray], *, beam_size: int = 1
    ) -> list[Prediction]:
        """Answers to one batch of encoded inputs."""
        spec = self.task(task)
        inputs, lengths = self.to_batch(spec.inputs, arrays)
        with torch.inference_mode():
            if spec.spec.num_outputs is not None:
                return self._classes(spec, inputs=inputs, lengths=lengths)
            return self._texts(spec, inputs=inputs, lengths=lengths, beam_size=beam_size)

    def to_batch(self, feature: Feature, arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Arrays of one feature, padded and on the device, with their lengths (B,)."""
        padded = modalities.load(feature.modality).collate(arrays, feature=feature)
        values = torch.from_numpy(padded.values).to(self.device)
        lengths = torch.from_numpy(padded.lengths).to(self.device)
        return (values.long() if values.dtype == torch.int32 else values), lengths.long()

    def decode_target(self, task: str, array: np.ndarray) -> str:
        """A target array as a person reads it: text, class name or linearised tree."""
        return self._decode(array, task=self.task(task))

    def _encode(self, value: str | bytes | Path, *, task: BundleTask) -> np.ndarray:
        raw: str | bytes = value if isinstance(value, bytes) else str(value)
        try:
            if task.inputs.modality != "text" and not isinstance(value, bytes):
                raw = Path(value).read_bytes()
            encode = modalities.load(task.inputs.modality).encode
            return encode(raw, feature=task.inputs, vocabulary=self.vocabulary)
        except (BadExampleError, OSError) as error:
            shown = f"{len(value)} bytes" if isinstance(value, bytes) else repr(str(value)[:80])
            raise PredictionError(
                f"{shown}, as {task.inputs.modality} of {task.spec.name}: {error}"
            ) from None

    def _classes(self, task: BundleTask, *, inputs: Tensor, lengths: Tensor) -> list[Prediction]:
        outputs = self.model(
            task=task.spec.name, inputs=inputs, input_lengths=lengths, targets=None
        )
        log_probs_BV = outputs.logits.float().log_softmax(dim=-1)
        num_shown = min(_MAX_CLASSES_SHOWN, log_probs_BV.shape[-1])
        best = log_probs_BV.topk(num_shown, dim=-1)
        answers = []
        for scores, ids in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            names = [self._decode(np.array(number), task=task) for number in ids]
            probabilities = dict(zip(names, np.exp(scores).tolist(), strict=True))
            answers.append(Prediction(names[0], scores[0], probabilities))
        return answers

    def _texts(
        self, task: BundleTask, *, inputs: Tensor, lengths: Tensor, beam_size: int
    ) -> list[Prediction]:
        length = task.max_target_length
        if beam_size == 1:
            decoded = decoding.greedy(
                self.model,
                task=task.spec.name,
                inputs=inputs,
                input_lengths=lengths,
                max_length=length,
            )
        else:
            decoded = decoding.beam(
                self.model,
                task=task.spec.name,
                inputs=inputs,
                input_lengths=lengths,
                max_length=length,
                beam_size=beam_size,
            )
        tokens_BT, log_probs_B = decoded.tokens_BT.cpu().numpy(), decoded.log_probs_B.tolist()
        rows = zip(tokens_BT, log_probs_B, strict=True)
        return [Prediction(self._decode(tokens, task=task), value) for tokens, value in rows]

    def _decode(self, array: np.ndarray, *, task: BundleTask) -> str:
        decode = modalities.load(task.targets.modality).decode
        return decode(array, feature=task.targets, vocabulary=self.vocabulary)


def _with_tree(prediction: Prediction, *, sentence: str) -> Prediction:
    """The prediction with its bracketed tree, where it is one over the sentence's words."""
    try:
        tree = to_brackets(delinearise(prediction.text, sentence=sentence))
    except BadExampleError:
        return prediction
    return Prediction(prediction.text, prediction.log_prob, prediction.scores, tree)
