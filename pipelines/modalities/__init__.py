"""Modalities: how a raw value of a kind becomes one array of an example, and back.

The name is the module: `pipelines/modalities/<modality>.py` defines

    FEATURE                                          its `Feature` class (settings, plain data)
    encode(value, *, feature, vocabulary) -> ndarray    raw value to the stored array, in `build`
    decode(array, *, feature, vocabulary) -> object     stored array (or a model's output) to a
                                                     value that a person can read
    collate(arrays, *, feature) -> Padded            the arrays of a batch, padded and stacked

    text_of(value, *, feature) -> str                optional, of text: its normal form
    WRITTEN = True                                   optional: raw values are strings, not files

All are functions of one row or one batch: no state, no Ray. `encode` raises `BadExampleError`
with the reason when a raw value cannot be used. `vocabulary` is None where no task of a run has
text.
"""

import importlib
import mimetypes
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from types import ModuleType
from typing import ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipelines.errors import UnknownNameError


class Feature(BaseModel):
    """What one array of a task's examples holds; each modality subclasses it with its settings.

    `net` names the module of `mmtrain/modalities` that turns the array into positions (or back).
    `dtype` and `rank` are those of the stored array; its axis 0 is the one that `collate` pads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: ClassVar[str]
    loss: ClassVar[str] = "cross_entropy"  # of a target: function of mmtrain/losses/

    modality: str

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

    @property
    def rank(self) -> int:
        """Number of axes of the stored array; 1 unless a subclass says more."""
        return 1

    @property
    def net(self) -> str:
        """The modality net of the model; the modality's own name unless a subclass says more."""
        return self.modality

    @property
    def num_outputs(self) -> int | None:
        """Of a target: scores that a model gives for it; None: a sequence of tokens is decoded."""
        return None

    @property
    def output_groups(self) -> tuple[int, ...]:
        """Of a target of several labels at once: scores of each, in order; they sum to all."""
        return ()


@dataclass(frozen=True, slots=True)
class Padded:
    """Arrays of a batch in one: `values` is (B, longest, ...), axis 1 real up to `lengths` (B,)."""

    values: np.ndarray
    lengths: np.ndarray


def names() -> tuple[str, ...]:
    """Names of all modalities."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> ModuleType:
    """The module of a modality.

    Raises:
        UnknownNameError: there is no such modality.
    """
    if name not in names():
        raise UnknownNameError("modality", name, names())
    return importlib.import_module(f"{__name__}.{name}")


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
