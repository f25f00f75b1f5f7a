"""Multilabel: which of some classes are there, any number of them at once."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from pipelines.errors import BadExampleError
from pipelines.modalities import Feature
from pipelines.modalities.label import class_ids
from pipelines.vocabulary import Vocabulary


class MultiLabelFeature(Feature):
    """1 for each class that is there, uint8 (V,)."""

    dtype: ClassVar[str] = "uint8"
    loss: ClassVar[str] = "sigmoid_cross_entropy"
    baselines: ClassVar[tuple[str, ...]] = ("label_frequency",)
    is_divisible: ClassVar[bool] = True

    modality: str = "multilabel"
    classes: tuple[str, ...] = Field(min_length=1, description="Class names; the id is the place.")

    @property
    def num_outputs(self) -> int:
        """A score for each class."""
        return len(self.classes)

    @property
    def longest_shape(self) -> tuple[int, ...]:
        """A number for each class."""
        return (len(self.classes),)

    def narrowed(self, array: np.ndarray, *, classes: Sequence[int]) -> np.ndarray:
        """What is there of these classes, perhaps nothing."""
        return array[list(classes)]


FEATURE = MultiLabelFeature


def encode(
    value: object, *, feature: MultiLabelFeature, vocabulary: Vocabulary | None
) -> np.ndarray:
    """Names of classes, a list or one text parted by commas, to uint8 (V,). None may be there.

    Raises:
        BadExampleError: neither list nor text, or the feature has no such class.
    """
    names = split_names(value)
    present_V = np.zeros(len(feature.classes), dtype=np.uint8)
    present_V[class_ids(names, classes=feature.classes)] = 1
    return present_V


def split_names(value: object) -> list[str]:
    """Names in a list, or in one text parted by commas.

    Raises:
        BadExampleError: it is neither.
    """
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, list | tuple):
        return [str(name) for name in value]
    raise BadExampleError(
        f"wrong type: {type(value).__name__}, not a list of names or a text parted by commas"
    )


def decode(
    array: np.ndarray, *, feature: MultiLabelFeature, vocabulary: Vocabulary | None
) -> list[str]:
    """Names of the classes that are there, in the feature's order."""
    return [name for name, there in zip(feature.classes, array, strict=True) if there]
