"""Modalities: how a raw value of a kind becomes one array of an example, and back.

A modality is a module: a shipped one, `pipelines/modalities/<modality>.py`, or a user's own file,
named by its path. It defines

    FEATURE                                          its `Feature` class: settings, and all that is
                                                     asked of the modality elsewhere
    encode(value, *, feature, vocabulary) -> ndarray    raw value to the stored array, in `build`
    decode(array, *, feature, vocabulary) -> object     stored array (or a model's output) to a
                                                     value that a person can read

    text_of(value, *, feature) -> str                optional, of text: its normal form
    WRITTEN = True                                   optional: raw values are strings, not files

All are functions of one row: no state, no Ray. `encode` raises `BadExampleError` with the reason
when a raw value cannot be used. `vocabulary` is None where no task of a run has text.
"""

import functools
import mimetypes
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny

from pipelines.errors import MMTrainError
from pipelines.file_formats import FileFormat
from pipelines.names import load_module, module_names


class FeatureError(MMTrainError):
    """A modality does not say what is asked of it."""


class Feature(BaseModel):
    """What one array of a task's examples holds; each modality subclasses it with its settings.

    What stands here is what a modality is taken for that says nothing else. A subclass in a user's
    file has `modality: str = __file__`, and is found by it in every process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # of the stored array, as `rank` is; its axis 0 is the one that `collate` pads
    dtype: ClassVar[str]
    # of inputs that are files: those that the server takes; none: any, for `encode` to judge
    formats: ClassVar[tuple[FileFormat, ...]] = ()
    # of inputs: fields that bound what is decoded, with the server's limit that may be tighter
    bounds: ClassVar[Mapping[str, str]] = {}
    # of inputs: the file of the raw corpus shows more than what `decode` gives
    shows_raw: ClassVar[bool] = False
    # of a target: function of mmtrain/losses/
    loss: ClassVar[str] = "cross_entropy"
    # of a target with scores: functions of mmtrain/evaluate/baselines.py that predict such
    baselines: ClassVar[tuple[str, ...]] = ()
    # of a target: its scores are of its `classes`, some of which `narrowed` can leave out
    is_divisible: ClassVar[bool] = False

    modality: str

    @property
    def rank(self) -> int:
        """Number of axes of the stored array; 1 unless a subclass says more."""
        return 1

    @property
    def net(self) -> str:
        """The net, a module of `mmtrain/modalities` or a user's own, that turns the array into
        positions, or back.
        """  # fmt: skip
        return self.modality

    @property
    def array_kind(self) -> str:
        """The modality whose augmentations and drawings fit the arrays of inputs."""
        return self.modality

    @property
    def longest_shape(self) -> tuple[int, ...]:
        """Shape of the largest array that is stored; axis 0 is the one that may be shorter.

        Raises:
            FeatureError: the modality does not say.
        """
        raise self._lacks("longest_shape", "a property that gives a tuple of ints")

    def example(self) -> str | bytes:
        """A raw value of an input, made up: what a registered model shows that it takes.

        Raises:
            FeatureError: the modality does not say.
        """
        raise self._lacks("example", "a method that gives a raw value")

    @property
    def num_outputs(self) -> int | None:
        """Of a target: scores that a model gives for it; None: a sequence of tokens is decoded."""
        return None

    @property
    def output_groups(self) -> tuple[int, ...]:
        """Of a target of several labels at once: scores of each, in order; they sum to all."""
        return ()

    @property
    def readout(self) -> str:
        """Of a target with scores: how they are read, a name in `mmtrain/predict/answers.py`."""
        return self.modality

    @property
    def place(self) -> Literal["none", "box", "mask", "unknown"]:
        """Of a target: how it says where something is in the picture that is the input."""
        return "none"

    def narrowed(self, array: np.ndarray, *, classes: Sequence[int]) -> np.ndarray | None:
        """A target with only these classes, under new ids 0, 1, ..; None: it has none of them."""
        raise NotImplementedError

    def completed(self, text: str, *, source: str) -> str | None:
        """A decoded target with what it leaves to the input's text; None: it leaves nothing."""
        return None

    @property
    def is_measured(self) -> bool:
        """Whether `build` measures the training split, and examples wait for mean and deviation.

        Then `encode` gives arrays as they are stored, and `finish` does the rest as they are read.
        """
        return False

    def as_asked(self) -> Self:
        """The feature as a task asks for it, without what `build` measured."""
        return self

    def as_measured(self, standard: tuple[float, float]) -> Self:
        """The feature with the mean and deviation that `build` measured."""
        raise NotImplementedError

    def finish(self, array: np.ndarray) -> np.ndarray:
        """A stored array as examples have it."""
        return array

    def finished_length(self, stored: float) -> float:
        """Positions of an example, or their mean, where arrays have so many as they are stored."""
        return stored

    def _lacks(self, name: str, what: str) -> FeatureError:
        return FeatureError(
            f"modality {self.modality} has no {name}; give its Feature class {what}, {name}"
        )


@dataclass(frozen=True, slots=True)
class Padded:
    """Arrays of a batch in one: `values` is (B, longest, ...), axis 1 real up to `lengths` (B,)."""

    values: np.ndarray
    lengths: np.ndarray


def collate(arrays: Sequence[np.ndarray]) -> Padded:
    """The arrays of a batch, padded with 0 along axis 0 to the longest, and stacked."""
    lengths = np.fromiter((len(array) for array in arrays), dtype=np.int32, count=len(arrays))
    if (lengths == lengths[0]).all():
        return Padded(np.stack(arrays), lengths)
    values = np.zeros((len(arrays), lengths.max(), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(values, arrays, strict=True):
        row[: len(array)] = array
    return Padded(values, lengths)


def names() -> tuple[str, ...]:
    """Names of the shipped modalities."""
    return module_names(sys.modules[__name__])


@functools.cache  # looks into the package's folder: too slow for each row or batch
def load(name: str) -> ModuleType:
    """The module of a modality, shipped or a user's own.

    Raises:
        UnknownNameError: there is no such modality.
        OwnCodeError: the user's file is gone, does not run, or lacks a part.
    """
    return load_module(
        name,
        kind="modality",
        package=sys.modules[__name__],
        needs=("FEATURE", "encode", "decode"),
    )


def _read(value: Any) -> Any:
    return load(value["modality"]).FEATURE(**value) if isinstance(value, Mapping) else value


# Of a config's field: from JSON, the modality says which class reads it
AnyFeature = Annotated[SerializeAsAny[Feature], BeforeValidator(_read)]


def is_text(name: str) -> bool:
    """Whether a modality is text, of the joint vocabulary: it says so by a function `text_of`."""
    return hasattr(load(name), "text_of")


def is_written(name: str) -> bool:
    """Whether raw values of a modality are strings; of others they are files' bytes."""
    return is_text(name) or getattr(load(name), "WRITTEN", False)


def named_by_files(values: Iterable[object]) -> str | None:
    """The modality that the names of files say, e.g. "video" of clip.mp4; None: not one for all."""
    guesses = {
        (mimetypes.guess_type(str(value))[0] or "").partition("/")[0]
        if isinstance(value, str | PurePath)
        else ""
        for value in values
    }
    only = guesses.pop() if len(guesses) == 1 else ""
    return only if only in names() else None
