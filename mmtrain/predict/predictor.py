"""Prediction: raw values in, answers that a person can read out. No Ray, no DeepSpeed.

What a value goes through is what `build` did to the training examples: the modality's `encode`
and `collate`, the model, and `decode` of what it says.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mmtrain.bundle import Bundle, BundleTask, find_bundle, load_bundle
from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.pruner import Pruner
from mmtrain.cut.recalibrate import recalibrate
from mmtrain.layers.encoded import Encoded
from mmtrain.masks.attach import wear_masks
from mmtrain.models.model import MultiTaskModel
from mmtrain.predict import decoding
from mmtrain.predict.answers import Prediction, load_kind
from pipelines import modalities
from pipelines.errors import BadExampleError, MMTrainError, UnknownNameError
from pipelines.modalities import Feature
from pipelines.vocabulary import Vocabulary

_MAX_PARTS = 8  # cut models kept in memory


class PredictionError(MMTrainError):
    """A value cannot be predicted from; names it and says why."""


class Predictor:
    """A model with its tasks and vocabulary, ready to answer."""

    def __init__(
        self, bundle: Bundle, *, device: str | None = None, model: MultiTaskModel | None = None
    ) -> None:
        """`model` is the bundle's, if it is built already."""
        self.bundle = bundle
        self.tasks: Mapping[str, BundleTask] = bundle.card.tasks
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model: MultiTaskModel = (model or bundle.build_model()).to(self.device)
        wear_masks(self.model)
        self._pruner: Pruner | None = None
        self._parts: dict[Hashable, Predictor] = {}

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
            from mmtrain.store.models import download_bundle  # imports MLflow: seconds

            return cls(download_bundle(str(uri), tracking_uri=tracking_uri), device=device)
        return cls(load_bundle(find_bundle(Path(uri))), device=device)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The joint vocabulary; None when no task has text."""
        return self.bundle.vocabulary

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the inputs that the model takes."""
        return tuple(dict.fromkeys(task.inputs.modality for task in self.tasks.values()))

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
            values: texts and names of classes; for other inputs, paths (`str` or `Path`) or the
                files' bytes.
            batch_size: values answered together.
            beam_size: beams of text decoding; 1 is greedy.

        Raises:
            PredictionError: a value cannot be read; the message names it.
            UnknownNameError: the model has no such task.
        """
        self.task(task)
        answers = self._answer([task], values, batch_size=batch_size, beam_size=beam_size)
        return [answer[task] for answer in answers]

    def predict_all(
        self,
        values: Sequence[str | bytes | Path],
        *,
        modality: str | None = None,
        batch_size: int = 32,
        beam_size: int = 1,
    ) -> list[dict[str, Prediction]]:
        """Answers of every task of a modality, by task, in the order of the values.

        Tasks whose inputs are the same feature read one pass through the body.

        Args:
            values: texts; for other inputs, paths (`str` or `Path`) or the files' bytes.
            modality: of the values; None where the model takes one alone, or all are paths whose
                endings say it.
            batch_size: values answered together.
            beam_size: beams of text decoding; 1 is greedy.

        Raises:
            PredictionError: a value cannot be read, or the model takes several modalities.
            UnknownNameError: no task of the model takes that modality.
        """
        modality = modality or self._modality_of(values)
        if modality not in self.modalities:
            raise UnknownNameError("modality of the model", modality, self.modalities)
        tasks = [name for name, task in self.tasks.items() if task.inputs.modality == modality]
        return self._answer(tasks, values, batch_size=batch_size, beam_size=beam_size)

    def predict_arrays(
        self, task: str, arrays: Sequence[np.ndarray], *, beam_size: int = 1
    ) -> list[Prediction]:
        """Answers to one batch of encoded inputs."""
        with torch.inference_mode():
            encoded = self.encode(task, arrays)
            return self._read(self.task(task), encoded, beam_size=beam_size)

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
        unlabelled: Mapping[str, Sequence[str | bytes | Path]] | None = None,
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
        if self._pruner is None:
            self._pruner = Pruner(self.bundle, model=self.model)
        subset = self._pruner.subset(subtasks, classes=classes)
        part = self._parts.pop(subset.key, None)
        if part is None:
            model = self._pruner.cut(subset)
            part = Predictor(
                self._pruner.part(model, subset=subset), device=str(self.device), model=model
            )
            batches = part.unlabelled_batches(unlabelled or {})
            recalibrate(model, batches, num_batches=len(batches))
        self._parts[subset.key] = part
        if len(self._parts) > _MAX_PARTS:
            self._parts.pop(next(iter(self._parts)))
        return part

    def unlabelled_batches(
        self, values: Mapping[str, Sequence[str | bytes | Path]], *, batch_size: int = 32
    ) -> list[TaskInputs]:
        """Raw values by task as batches without targets; of tasks that the model has not, none.

        Raises:
            PredictionError: a value cannot be read; the message names it.
        """
        batches = []
        for name, of_task in values.items():
            if name not in self.tasks:
                continue
            arrays = [self._array(value, task=self.task(name)) for value in of_task]
            for start in range(0, len(arrays), batch_size):
                rows = arrays[start : start + batch_size]
                batches.append(TaskInputs(name, *self.to_batch(self.task(name).inputs, rows)))
        return batches

    def decode_target(self, task: str, array: np.ndarray) -> str:
        """A target array as a person reads it, in the words of `Prediction.text`."""
        return self._text(array, task=self.task(task))

    def _modality_of(self, values: Sequence[str | bytes | Path]) -> str:
        only, *others = self.modalities
        if others:
            if (named := modalities.named_by_files(values)) in self.modalities:
                return named
            raise PredictionError(
                f"the model takes {', '.join(self.modalities)}; name the task (--task) or the "
                "modality of the inputs (--modality)"
            )
        return only

    def _answer(
        self,
        tasks: Sequence[str],
        values: Sequence[str | bytes | Path],
        *,
        batch_size: int,
        beam_size: int,
    ) -> list[dict[str, Prediction]]:
        """Each value's answers of all `tasks`; a pass through the body for each input feature."""
        answers: list[dict[str, Prediction]] = [{} for _ in values]
        for alike in self.tasks_with_same_inputs(tasks):
            arrays = [self._array(value, task=alike[0]) for value in values]
            names = [task.spec.name for task in alike]
            for start in range(0, len(arrays), batch_size):
                part = slice(start, start + batch_size)
                said = self.predict_batch(
                    names, arrays[part], values=values[part], beam_size=beam_size
                )
                for answer, by_task in zip(answers[part], said, strict=True):
                    answer.update(by_task)
        return [{name: by_task[name] for name in tasks} for by_task in answers]

    def predict_batch(
        self,
        tasks: Sequence[str],
        arrays: Sequence[np.ndarray],
        *,
        values: Sequence[str | bytes | Path],
        beam_size: int = 1,
    ) -> list[dict[str, Prediction]]:
        """Answers of tasks with the same inputs to one batch, by task; one pass through the body.

        Args:
            tasks: tasks whose inputs are the same feature; see `tasks_with_same_inputs`.
            arrays: encoded inputs.
            values: what they were encoded from; trees take their words from them.
            beam_size: beams of text decoding; 1 is greedy.
        """
        answers: list[dict[str, Prediction]] = [{} for _ in arrays]
        with torch.inference_mode():
            encoded = self.encode(tasks[0], arrays)
            for task in map(self.task, tasks):
                said = self._read(task, encoded, beam_size=beam_size)
                for by_task, answer, value in zip(answers, said, values, strict=True):
                    by_task[task.spec.name] = _finished(answer, task=task, value=value)
        return answers

    def tasks_with_same_inputs(self, tasks: Sequence[str]) -> list[list[BundleTask]]:
        """Tasks in groups whose inputs are the same feature, read by the same net."""
        groups: dict[tuple[str, str], list[BundleTask]] = {}
        for task in (self.tasks[name] for name in tasks):
            key = (task.spec.input_net, task.inputs.model_dump_json())
            groups.setdefault(key, []).append(task)
        return list(groups.values())

    def _array(self, value: str | bytes | Path, *, task: BundleTask) -> np.ndarray:
        """A raw value as `build` would store it."""
        raw: str | bytes = value if isinstance(value, bytes) else str(value)
        try:
            if not modalities.is_written(task.inputs.modality) and not isinstance(value, bytes):
                raw = Path(value).read_bytes()
            encode = modalities.load(task.inputs.modality).encode
            return encode(raw, feature=task.inputs, vocabulary=self.vocabulary)
        except (BadExampleError, OSError) as error:
            shown = f"{len(value)} bytes" if isinstance(value, bytes) else repr(str(value)[:80])
            raise PredictionError(
                f"{shown}, as {task.inputs.modality} of {task.spec.name}: {error}"
            ) from None

    def _read(self, task: BundleTask, encoded: Encoded, *, beam_size: int) -> list[Prediction]:
        """What a task's head says of an encoded batch."""
        if task.spec.num_outputs is None:
            return self._decode(task, encoded, beam_size=beam_size)
        logits = self.model.answer(task.spec.name, encoded).logits
        return load_kind(task.targets).answers(logits, task.spec, task.targets)

    def _decode(self, task: BundleTask, encoded: Encoded, *, beam_size: int) -> list[Prediction]:
        """Token after token."""
        name, length = task.spec.name, task.max_target_length
        if beam_size == 1:
            decoded = decoding.greedy(self.model, task=name, inputs=encoded, max_length=length)
        else:
            decoded = decoding.beam(
                self.model, task=name, inputs=encoded, max_length=length, beam_size=beam_size
            )
        tokens_BT, log_probs_B = decoded.tokens_BT.cpu().numpy(), decoded.log_probs_B.tolist()
        rows = zip(tokens_BT, log_probs_B, strict=True)
        return [Prediction(self._text(tokens, task=task), value) for tokens, value in rows]

    def _text(self, array: np.ndarray, *, task: BundleTask) -> str:
        if task.spec.num_outputs is not None:
            return load_kind(task.targets).text(array, task.targets)
        decode = modalities.load(task.targets.modality).decode
        return decode(array, feature=task.targets, vocabulary=self.vocabulary)


def _finished(prediction: Prediction, *, task: BundleTask, value: str | bytes | Path) -> Prediction:
    """The prediction with its bracketed tree, where it is one over the sentence's words."""
    tree = task.targets.completed(prediction.text, source=str(value))
    return replace(prediction, tree=tree) if tree else prediction
