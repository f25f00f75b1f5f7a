"""Mask: a class for each pixel of a picture, from a PNG whose pixel values are the class ids.

Pictures with a palette count by their palette's places, so that a mask may be written in colours
that a person can tell apart; `decode` writes such.
"""

import colorsys
import io
from typing import ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from pipelines.errors import BadExampleError
from pipelines.modalities import Feature
from pipelines.modalities.image import open_picture
from pipelines.vocabulary import Vocabulary

ID_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # one whole number a pixel


class MaskFeature(Feature):
    """Class id of each pixel, uint8 (Y, X)."""

    dtype: ClassVar[str] = "uint8"
    baselines: ClassVar[tuple[str, ...]] = ("majority_element",)

    modality: str = "mask"
    height: int = Field(ge=1, description="Rows, in pixels.")
    width: int = Field(ge=1, description="Columns, in pixels.")
    classes: tuple[str, ...] = Field(
        min_length=2, max_length=256, description="Class names; the pixel value is the place."
    )
    max_pixels: int = Field(
        default=50_000_000,
        ge=1,
        description="Largest picture that is decoded, in pixels of the file.",
    )

    @property
    def rank(self) -> int:
        """Rows and columns."""
        return 2

    @property
    def num_outputs(self) -> int:
        """A score for each class, at each pixel."""
        return len(self.classes)

    @property
    def longest_shape(self) -> tuple[int, ...]:
        """All masks have one size."""
        return (self.height, self.width)

    @property
    def place(self) -> Literal["mask"]:
        """A class at each pixel."""
        return "mask"


FEATURE = MaskFeature


def encode(value: object, *, feature: MaskFeature, vocabulary: Vocabulary | None) -> np.ndarray:
    """The bytes of a picture of class ids to uint8 (height, width); the nearest pixel is kept.

    Raises:
        BadExampleError: not a picture, of colours and not of ids, or an id beyond the classes.
    """
    if not isinstance(value, bytes):
        raise BadExampleError(f"wrong type: {type(value).__name__}, not the bytes of an image")
    picture = open_picture(value, max_pixels=feature.max_pixels)
    if picture.mode not in ID_MODES:
        raise BadExampleError(f"not a mask: pixels are {picture.mode}, not one class id each")
    ids = np.asarray(picture).astype(np.int64)
    if ids.min() < 0 or ids.max() >= len(feature.classes):
        worst = ids.max() if ids.max() >= len(feature.classes) else ids.min()
        raise BadExampleError(f"unknown class: id {worst}, not 0 to {len(feature.classes) - 1}")
    small = Image.fromarray(ids.astype(np.uint8))
    if small.size != (feature.width, feature.height):
        small = small.resize((feature.width, feature.height), Image.Resampling.NEAREST)
    return np.array(small)


def decode(array: np.ndarray, *, feature: MaskFeature, vocabulary: Vocabulary | None) -> bytes:
    """Class ids to the bytes of a PNG with a palette: values are ids, 0 is black, others bright."""
    picture = Image.fromarray(np.asarray(array, dtype=np.uint8)).convert("P")
    picture.putdata(np.asarray(array, dtype=np.uint8).reshape(-1).tolist())
    picture.putpalette(palette(len(feature.classes)))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def palette(num_classes: int) -> list[int]:
    """Red, green and blue of each class, 0..255 in one list: black, then hues far apart."""
    hues = [(number * 0.618034) % 1.0 for number in range(num_classes - 1)]  # the golden ratio
    colours = [(0.0, 0.0, 0.0), *(colorsys.hsv_to_rgb(hue, 0.75, 1.0) for hue in hues)]
    return [round(255 * level) for colour in colours for level in colour]
