"""Labels: one class for each of several parts, such as the verb and the noun of an action."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from pipelines.errors import BadExampleError
from pipelines.modalities import Feature
from pipelines.modalities.label import class_ids
from pipelines.modalities.multilabel import split_names
from pipelines.vocabulary import Vocabulary


class LabelsFeature(Feature):
    """Class id of each part, int32 (K,); ids count from 0 in each."""

    dtype: ClassVar[str] = "int32"
    loss: ClassVar[str] = "grouped_cross_entropy"
    baselines: ClassVar[tuple[str, ...]] = ("majority_class",)

    modality: str = "labels"
    parts: dict[str, tuple[str, ...]] = Field(
        min_length=1, description="Parts in order, each with its class names; the id is the place."
    )

    @property
    def num_outputs(self) -> int:
        """A score for each class of each part."""
        return sum(self.output_groups)

    @property
    def output_groups(self) -> tuple[int, ...]:
        """Classes of each part."""
        return tuple(len(classes) for classes in self.parts.values())

    @property
    def longest_shape(self) -> tuple[int, ...]:
        """An id for each part."""
        return (len(self.parts),)


FEATURE = LabelsFeature


def encode(value: object, *, feature: LabelsFeature, vocabulary: Vocabulary | None) -> np.ndarray:
    """A class name for each part to int32 (K,): a mapping by part, or names in the parts' order.

    Raises:
        BadExampleError: a part is missing or unknown, or has no such class.
    """
    names = by_name(value, names=tuple(feature.parts))
    ids = [
        class_ids([str(name)], classes=classes)
        for name, classes in zip(names, feature.parts.values(), strict=True)
    ]
    return np.concatenate(ids).astype(np.int32)


def by_name(value: object, *, names: Sequence[str]) -> list[object]:
    """The values of a mapping in the order of `names`; a list, or a text parted by commas, is so.

    Raises:
        BadExampleError: not one value for each name.
    """
    if isinstance(value, Mapping):
        if set(value) != set(names):
            raise BadExampleError(f"wrong names: {sorted(value)}, not {', '.join(names)}")
        return [value[name] for name in names]
    values = split_names(value) if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        raise BadExampleError(f"wrong type: {type(value).__name__}, not a value for each name")
    if len(values) != len(names):
        raise BadExampleError(f"wrong length: {len(values)} values for {', '.join(names)}")
    return list(values)


def decode(
    array: np.ndarray, *, feature: LabelsFeature, vocabulary: Vocabulary | None
) -> dict[str, str]:
    """The class name of each part."""
    ids = np.asarray(array).tolist()
    return {
        part: classes[number]
        for (part, classes), number in zip(feature.parts.items(), ids, strict=True)
    }
