"""Image: the bytes of a picture file to uint8 pixels of one fixed size.

Any file that Pillow reads is taken: grey, 16-bit, palette and transparent pictures become the
feature's channels (transparent parts lie on black), other sizes are resized without keeping their
shape.
"""

import io
import warnings
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from pipelines.errors import BadExampleError
from pipelines.file_formats import BMP, GIF, JPEG, PNG, TIFF, WEBP, FileFormat
from pipelines.modalities import Feature
from pipelines.vocabulary import Vocabulary


class ImageFeature(Feature):
    """Pixels, uint8 (Y, X, C)."""

    dtype: ClassVar[str] = "uint8"
    formats: ClassVar[tuple[FileFormat, ...]] = (PNG, JPEG, GIF, WEBP, BMP, TIFF)
    bounds: ClassVar[Mapping[str, str]] = {"max_pixels": "max_pixels"}

    modality: str = "image"
    height: int = Field(ge=1, description="Rows, in pixels.")
    width: int = Field(ge=1, description="Columns, in pixels.")
    channels: Literal[1, 3] = Field(description="1 for grey, 3 for red, green and blue.")
    max_pixels: int = Field(
        default=50_000_000,
        ge=1,
        description="Largest picture that is decoded, in pixels of the file.",
    )

    @property
    def rank(self) -> int:
        """Rows, columns and channels."""
        return 3

    @property
    def longest_shape(self) -> tuple[int, ...]:
        """All pictures have one size."""
        return (self.height, self.width, self.channels)

    def example(self) -> bytes:
        """A black picture."""
        return to_png(np.zeros((self.height, self.width, 3), dtype=np.uint8))


FEATURE = ImageFeature

# What Pillow raises for broken files, as 20,000 of them with random bytes changed have shown
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    NotImplementedError,
    Image.DecompressionBombError,
)


def encode(value: object, *, feature: ImageFeature, vocabulary: Vocabulary | None) -> np.ndarray:
    """The bytes of a picture file to uint8 (height, width, channels).

    Raises:
        BadExampleError: not a picture, cut short, or of more pixels than `max_pixels`.
    """
    if not isinstance(value, bytes):
        raise BadExampleError(f"wrong type: {type(value).__name__}, not the bytes of an image")
    picture = open_picture(value, max_pixels=feature.max_pixels)
    return fit(picture, height=feature.height, width=feature.width, channels=feature.channels)


def fit(picture: Image.Image, *, height: int, width: int, channels: int) -> np.ndarray:
    """A picture as uint8 (height, width, channels); its shape is not kept."""
    picture = to_channels(picture, channels)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(height, width, channels)


def open_picture(data: bytes, *, max_pixels: int) -> Image.Image:
    """A decoded picture, turned as its camera says. The size is checked before decoding."""
    try:
        with warnings.catch_warnings():  # Pillow warns of large files; max_pixels decides here
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data))
        width, height = picture.size
        if width * height > max_pixels:
            raise BadExampleError(
                f"image too large: {width} x {height} pixels, at most {max_pixels}"
            )
        picture.load()
    except UnidentifiedImageError as error:
        raise BadExampleError(
            f"not an image: Pillow reads none in these {len(data)} bytes"
        ) from error
    except UNREADABLE as error:
        raise BadExampleError(f"unreadable image: {error} ({len(data)} bytes)") from error
    return ImageOps.exif_transpose(picture)


def to_channels(picture: Image.Image, channels: int) -> Image.Image:
    """Grey or RGB. Deep pictures are scaled to 8 bits from 0..65535 or, for floats, from 0..1."""
    if picture.mode.startswith("I"):
        levels = np.asarray(picture, dtype=np.float64) / 257.0
        picture = Image.fromarray(np.clip(levels.round(), 0, 255).astype(np.uint8))
    elif picture.mode == "F":
        levels = np.asarray(picture, dtype=np.float64) * 255.0
        picture = Image.fromarray(np.clip(levels.round(), 0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return picture.convert("L" if channels == 1 else "RGB")


def decode(array: np.ndarray, *, feature: ImageFeature, vocabulary: Vocabulary | None) -> bytes:
    """Pixels to the bytes of a PNG file."""
    pixels = np.asarray(array, dtype=np.uint8)
    return to_png(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def to_png(pixels: np.ndarray) -> bytes:
    """uint8 (Y, X) or (Y, X, 3) to the bytes of a PNG file; the same pixels give the same bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
