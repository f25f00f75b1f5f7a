"""Numbers: a few measured values, such as the sides of a box, scaled to 0..1.

A box is four numbers named as in BOX, from the picture's left and upper edge; `low` is that edge
and `high` the right and lower one, so that stored values are shares of the picture's sides.
"""

import math
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pipelines.errors import BadExampleError
from pipelines.modalities import Feature
from pipelines.modalities.labels import by_name
from pipelines.vocabulary import Vocabulary

BOX = ("left", "top", "right", "bottom")


class NumbersFeature(Feature):
    """Values from `low` to `high` scaled to 0..1, float32 (K,)."""

    dtype: ClassVar[str] = "float32"
    loss: ClassVar[str] = "squared_error"
    baselines: ClassVar[tuple[str, ...]] = ("mean_value",)

    modality: str = "numbers"
    names: tuple[str, ...] = Field(min_length=1, description="What each value is.")
    low: float = Field(default=0.0, description="Least value there is; stored as 0.")
    high: float = Field(default=1.0, description="Greatest value there is; stored as 1.")

    @property
    def num_outputs(self) -> int:
        """A score is a value."""
        return len(self.names)

    @property
    def longest_shape(self) -> tuple[int, ...]:
        """A number for each name."""
        return (len(self.names),)

    @property
    def place(self) -> Literal["box", "unknown"]:
        """A box by its names; of other numbers nobody knows whether they are places."""
        return "box" if self.names == BOX else "unknown"

    @model_validator(mode="after")
    def _range_is_open(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self


FEATURE = NumbersFeature


def encode(value: object, *, feature: NumbersFeature, vocabulary: Vocabulary | None) -> np.ndarray:
    """Numbers by name, or in the order of the names, to float32 (K,) in 0..1.

    Raises:
        BadExampleError: not one finite number from `low` to `high` for each name, or a box whose
            right or lower edge lies before the other.
    """
    values = by_name(value, names=feature.names)
    numbers = [_number(v, name=n) for v, n in zip(values, feature.names, strict=True)]
    for number, name in zip(numbers, feature.names, strict=True):
        if not feature.low <= number <= feature.high:
            raise BadExampleError(
                f"out of range: {name} is {number:g}, not {feature.low:g} to {feature.high:g}"
            )
    if feature.names == BOX and not (numbers[0] <= numbers[2] and numbers[1] <= numbers[3]):
        raise BadExampleError(f"not a box: left, top, right, bottom are {numbers}")
    scaled_K = (np.array(numbers) - feature.low) / (feature.high - feature.low)
    return scaled_K.astype(np.float32)


def _number(value: object, *, name: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadExampleError(f"not a number: {name} is {value!r}") from None
    if not math.isfinite(number):
        raise BadExampleError(f"not finite: {name} is {number}")
    return number


def decode(
    array: np.ndarray, *, feature: NumbersFeature, vocabulary: Vocabulary | None
) -> dict[str, float]:
    """Values by name in their own units; a model's may lie outside the range."""
    span = feature.high - feature.low
    values = [feature.low + span * float(share) for share in np.asarray(array)]
    return dict(zip(feature.names, values, strict=True))
