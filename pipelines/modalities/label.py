"""Label: a class name to its id, the place of the name in the feature's tuple of classes."""

import difflib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from pipelines.errors import BadExampleError
from pipelines.modalities import Feature
from pipelines.vocabulary import Vocabulary

WRITTEN = True
MAX_SHOWN = 12  # classes named in a message


class LabelFeature(Feature):
    """Class id, int32 (1,)."""

    dtype: ClassVar[str] = "int32"
    baselines: ClassVar[tuple[str, ...]] = ("majority_class",)
    is_divisible: ClassVar[bool] = True

    modality: str = "label"
    classes: tuple[str, ...] = Field(min_length=1, description="Class names; the id is the place.")

    @property
    def num_outputs(self) -> int:
        """A score for each class."""
        return len(self.classes)

    @property
    def longest_shape(self) -> tuple[int, ...]:
        """One id."""
        return (1,)

    def example(self) -> str:
        """The first class."""
        return self.classes[0]

    def narrowed(self, array: np.ndarray, *, classes: Sequence[int]) -> np.ndarray | None:
        """The new id of the class; None: it is left out."""
        number = int(array[0])
        return np.array([classes.index(number)], array.dtype) if number in classes else None


FEATURE = LabelFeature


def encode(value: object, *, feature: LabelFeature, vocabulary: Vocabulary | None) -> np.ndarray:
    """A class name to int32 (1,).

    Raises:
        BadExampleError: the feature has no such class.
    """
    name = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return class_ids([name], classes=feature.classes)


def class_ids(names: Sequence[str], *, classes: Sequence[str]) -> np.ndarray:
    """Places of names among the classes, int32 (names,).

    Raises:
        BadExampleError: there is no such class.
    """
    for name in names:
        if name not in classes:
            raise BadExampleError(f"unknown class: {name!r}, not of {_shown(name, classes)}")
    return np.array([classes.index(name) for name in names], dtype=np.int32)


def _shown(name: str, classes: Sequence[str]) -> str:
    """The classes there are, the first ones of many, and those nearest to a name."""
    more = len(classes) - MAX_SHOWN
    listed = ", ".join(classes[:MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
    near = difflib.get_close_matches(name, classes)
    return f"{listed}; nearest: {', '.join(near)}" if near else listed


def decode(array: np.ndarray, *, feature: LabelFeature, vocabulary: Vocabulary | None) -> str:
    """The name of a class id, given as (1,) or as a scalar."""
    return feature.classes[int(np.asarray(array).reshape(-1)[0])]
