"""A user's own target: a letter grade, whose scores are read as those of a label are."""

from typing import ClassVar

import numpy as np

from pipelines.errors import BadExampleError
from pipelines.modalities import Feature

WRITTEN = True


class LetterFeature(Feature):
    """Place in the alphabet, int32 (1,)."""

    dtype: ClassVar[str] = "int32"
    baselines: ClassVar[tuple[str, ...]] = ("majority_class",)

    modality: str = __file__
    last: str = "c"

    @property
    def net(self) -> str:
        return "label"

    @property
    def readout(self) -> str:
        return "label"

    @property
    def longest_shape(self) -> tuple[int, ...]:
        return (1,)

    @property
    def num_outputs(self) -> int:
        return ord(self.last) - ord("a") + 1


FEATURE = LetterFeature


def encode(value: object, *, feature: LetterFeature, vocabulary: object) -> np.ndarray:
    if not isinstance(value, str) or not "a" <= value <= feature.last:
        raise BadExampleError(f"no letter from a to {feature.last}: {value!r}")
    return np.array([ord(value) - ord("a")], np.int32)


def decode(array: np.ndarray, *, feature: LetterFeature, vocabulary: object) -> str:
    return chr(ord("a") + int(np.asarray(array).reshape(-1)[0]))
