"""Prediction: raw values in, answers that a person can read out. No Ray, no DeepSpeed.

What a value goes through is what `build` did to the training examples: the modality's `encode`
and `collate`, the model, and `decode` of its answer.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mmtrain.bundle import Bundle, BundleTask
from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.pruner import Pruner
from mmtrain.cut.recalibrate import recalibrate
from mmtrain.layers.encoded import Encoded
from mmtrain.masks.attach import put_on_masks
from mmtrain.models.model import MultiTaskModel
from mmtrain.predict import decoding
from mmtrain.predict.answers import Prediction, load_kind
from mmtrain.predict.open import open_model
from mmtrain.predict.values import RawValue, Value, choose_tasks, encode_value, unreadable
from pipelines import modalities
from pipelines.errors import BadExampleError, UnknownNameError
from pipelines.modalities import Feature
from pipelines.vocabulary import Vocabulary

_MAX_PARTS = 8  # cut models kept in memory


class Predictor:
    """A model with its tasks and vocabulary, ready to answer.

    Args:
        bundle: the trained model.
        device: torch device; None takes the GPU where there is one.
        model: the bundle's, if it is built already.
    """

    def __init__(
        self, bundle: Bundle, *, device: str | None = None, model: MultiTaskModel | None = None
    ) -> None:
        self.bundle = bundle
        self.tasks: Mapping[str, BundleTask] = bundle.card.tasks
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model: MultiTaskModel = (model or bundle.build_model()).to(self.device).eval()
        put_on_masks(self.model)
        self._parts: dict[Hashable, Predictor] = {}

    @classmethod
    def load(
        cls, uri: str | Path, *, device: str | None = None, tracking_uri: str | None = None
    ) -> Self:
        """The predictor of a model of any name; see `open_model`."""
        return cls(open_model(uri, tracking_uri=tracking_uri).bundle, device=device)

    @cached_property
    def pruner(self) -> Pruner:
        """What cuts the model to its subtasks.

        Raises:
            NoMasksError: the model was trained without masks, or is cut already.
        """
        return Pruner(self.bundle, model=self.model)

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
        self, task: str, values: Sequence[RawValue], *, batch_size: int = 32, beam_size: int = 1
    ) -> list[Prediction]:
        """Answers in the order of the values.

        Args:
            task: name of the task that answers.
            values: texts and names of classes; for other inputs, paths (`str` or `Path`) or the
                files' bytes.
            batch_size: values answered together.
            beam_size: beams of text decoding; 1 is greedy.

        Raises:
            PredictionError: a value cannot be read; the message names it.
            UnknownNameError: the model has no such task.
        """
        tasks = choose_tasks(self.tasks, task=task)
        answers = self._predict(tasks, values, batch_size=batch_size, beam_size=beam_size)
        return [by_task[task] for by_task in answers]

    def predict_all(
        self,
        values: Sequence[RawValue],
        *,
        modality: str | None = None,
        batch_size: int = 32,
        beam_size: int = 1,
    ) -> list[dict[str, Prediction]]:
        """Answers of every task of a modality, by task, in the order of the values.

        Tasks whose inputs are the same feature read one pass through the body.

        Args:
            values: as `predict` takes them.
            modality: of the values; None where the model takes one alone, or all are paths whose
                endings say it.
            batch_size: values answered together.
            beam_size: beams of text decoding; 1 is greedy.

        Raises:
            PredictionError: a value cannot be read, or the model takes several modalities.
            UnknownNameError: no task of the model takes that modality.
        """
        tasks = choose_tasks(self.tasks, modality=modality, files=values)
        return self._predict(tasks, values, batch_size=batch_size, beam_size=beam_size)

    def predict_each(
        self,
        tasks: Sequence[str],
        values: Sequence[Value],
        *,
        folder: Path = Path(),
        beam_size: int = 1,
    ) -> list[dict[str, Prediction | BadExampleError]]:
        """Answers to one batch of values by task; to a value that cannot be read, the reason.

        Args:
            tasks: names of the tasks that answer.
            values: as `predict` takes them, or stored arrays of a built split, or in place of a
                value the reason why there is none.
            folder: that paths are relative to.
            beam_size: beams of text decoding; 1 is greedy.
        """
        answers: list[dict[str, Prediction | BadExampleError]] = [{} for _ in values]
        for alike in self.tasks_with_same_inputs(tasks):
            names = [task.spec.name for task in alike]
            readable: dict[int, tuple[str | bytes, np.ndarray]] = {}
            for row, value in enumerate(values):
                try:
                    readable[row] = encode_value(
                        value, task=alike[0], vocabulary=self.vocabulary, folder=folder
                    )
                except BadExampleError as error:
                    answers[row] |= dict.fromkeys(names, error)
            raws, arrays = [raw for raw, _ in readable.values()], [a for _, a in readable.values()]
            batch = self.predict_batch(names, arrays, values=raws, beam_size=beam_size)
            for row, by_task in zip(readable, batch, strict=True):
                answers[row] |= by_task
        return [{name: by_task[name] for name in tasks} for by_task in answers]

    def predict_batch(
        self,
        tasks: Sequence[str],
        arrays: Sequence[np.ndarray],
        *,
        values: Sequence[RawValue] | None = None,
        beam_size: int = 1,
    ) -> list[dict[str, Prediction]]:
        """Answers of tasks with the same inputs to one batch, by task; one pass through the body.

        Args:
            tasks: tasks whose inputs are the same feature; see `tasks_with_same_inputs`.
            arrays: encoded inputs.
            values: what they were encoded from; trees take their words from them. None: they have
                no words.
            beam_size: beams of text decoding; 1 is greedy.
        """
        answers: list[dict[str, Prediction]] = [{} for _ in arrays]
        if not answers:
            return answers
        with torch.inference_mode():
            encoded = self.encode(tasks[0], arrays)
            for task in map(self.task, tasks):
                batch = self._answer(task, encoded, beam_size=beam_size)
                if values is not None:
                    batch = [
                        _completed(answer, value, targets=task.targets)
                        for answer, value in zip(batch, values, strict=True)
                    ]
                for by_task, answer in zip(answers, batch, strict=True):
                    by_task[task.spec.name] = answer
        return answers

    def logits(self, task: str, arrays: Sequence[np.ndarray]) -> Tensor:
        """Scores of one batch of encoded inputs, of a task with a fixed number of them."""
        with torch.inference_mode():
            return self.model.answer(task, self.encode(task, arrays)).logits

    def encode(self, task: str, arrays: Sequence[np.ndarray]) -> Encoded:
        """One batch of encoded inputs as the body leaves them, for this task or one like it."""
        inputs, lengths = self.to_batch(self.task(task).inputs, arrays)
        return self.model.encode(task, inputs=inputs, input_lengths=lengths)

    def to_batch(self, feature: Feature, arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Arrays of one feature, padded and on the device, with their lengths (B,)."""
        padded = modalities.collate(arrays)
        values = torch.from_numpy(padded.values).to(self.device)
        lengths = torch.from_numpy(padded.lengths).to(self.device)
        return (values.long() if values.dtype == torch.int32 else values), lengths.long()

    def for_subtasks(
        self,
        subtasks: Sequence[str] = (),
        *,
        classes: Sequence[str] = (),
        unlabelled: Mapping[str, Sequence[RawValue]] | None = None,
    ) -> "Predictor":
        """A predictor of the smaller model that these subtasks need, cut in memory.

        A subset is cut once, then kept, the last few that were asked for: going back to one of
        them takes no time.

        Args:
            subtasks: basis subtasks that the model was trained with; none: those of `classes`.
            classes: classes that it chooses from; none: all of the subtasks.
            unlabelled: by task, values as `predict` takes them, of which batch norms take their
                statistics; read when the subset is new, and needed by models with batch norms.

        Raises:
            NoMasksError: the model was trained without masks, or is cut already.
            UnknownNameError: there is no such subtask or class.
            SubsetError: nothing is named, or the subtasks have no such class.
            RecalibrationError: values are needed.
        """
        subset = self.pruner.subset(subtasks, classes=classes)
        part = self._parts.pop(subset.key, None)
        if part is None:
            model = self.pruner.cut(subset)
            part = Predictor(
                self.pruner.part(model, subset=subset), device=str(self.device), model=model
            )
            batches = part.unlabelled_batches(unlabelled or {})
            recalibrate(model, batches)
        self._parts[subset.key] = part
        if len(self._parts) > _MAX_PARTS:
            self._parts.pop(next(iter(self._parts)))
        return part

    def unlabelled_batches(
        self, values: Mapping[str, Sequence[RawValue]], *, batch_size: int = 32
    ) -> list[TaskInputs]:
        """Raw values by task as batches without targets; of tasks that the model has not, none.

        Raises:
            PredictionError: a value cannot be read; the message names it.
        """
        batches = list[TaskInputs]()
        for name in filter(self.tasks.__contains__, values):
            task, arrays = self.tasks[name], list[np.ndarray]()
            for value in values[name]:
                try:
                    arrays.append(encode_value(value, task=task, vocabulary=self.vocabulary)[1])
                except BadExampleError as error:
                    raise unreadable(value, task=task, reason=error) from None
            for start in range(0, len(arrays), batch_size):
                rows = arrays[start : start + batch_size]
                batches.append(TaskInputs(name, *self.to_batch(task.inputs, rows)))
        return batches

    def decode_target(self, task: str, array: np.ndarray) -> str:
        """A target array as a person reads it, in the words of `Prediction.text`."""
        spec, targets = self.task(task).spec, self.task(task).targets
        if spec.num_outputs is not None:
            return load_kind(targets).text(array, targets)
        decode = modalities.load(targets.modality).decode
        return decode(array, feature=targets, vocabulary=self.vocabulary)

    def _predict(
        self, tasks: Sequence[str], values: Sequence[RawValue], *, batch_size: int, beam_size: int
    ) -> list[dict[str, Prediction]]:
        """Each value's answers of all tasks.

        Raises:
            PredictionError: a value cannot be read.
        """
        answers: list[dict[str, Prediction]] = []
        for start in range(0, len(values), batch_size):
            batch = values[start : start + batch_size]
            each = self.predict_each(tasks, batch, beam_size=beam_size)
            for value, by_task in zip(batch, each, strict=True):
                answers.append({})
                for name, answer in by_task.items():
                    if isinstance(answer, BadExampleError):
                        raise unreadable(value, task=self.tasks[name], reason=answer)
                    answers[-1][name] = answer
        return answers

    def tasks_with_same_inputs(self, tasks: Sequence[str]) -> list[list[BundleTask]]:
        """Tasks in groups whose inputs are the same feature, read by the same net."""
        groups: dict[tuple[str, str], list[BundleTask]] = {}
        for task in (self.tasks[name] for name in tasks):
            key = (task.spec.input_net, task.inputs.model_dump_json())
            groups.setdefault(key, []).append(task)
        return list(groups.values())

    def _answer(self, task: BundleTask, encoded: Encoded, *, beam_size: int) -> list[Prediction]:
        """A task's answers to an encoded batch."""
        name, length = task.spec.name, task.max_target_length
        if task.spec.num_outputs is not None:
            logits = self.model.answer(name, encoded).logits
            return load_kind(task.targets).answers(logits, task.spec, task.targets)
        decoded = (
            decoding.greedy(self.model, task=name, inputs=encoded, max_length=length)
            if beam_size == 1
            else decoding.beam(
                self.model, task=name, inputs=encoded, max_length=length, beam_size=beam_size
            )
        )
        tokens_BT, log_probs_B = decoded.tokens_BT.cpu().numpy(), decoded.log_probs_B.tolist()
        rows = zip(tokens_BT, log_probs_B, strict=True)
        return [Prediction(self.decode_target(name, tokens), value) for tokens, value in rows]


def _completed(prediction: Prediction, value: RawValue, *, targets: Feature) -> Prediction:
    """The prediction with its bracketed tree, where it is one over the sentence's words."""
    tree = targets.completed(prediction.text, source=str(value))
    return replace(prediction, tree=tree) if tree else prediction
