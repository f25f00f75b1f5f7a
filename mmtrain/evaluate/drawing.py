"""Answers drawn over the picture that they are of: masks as colours, boxes as frames."""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from mmtrain.predict.answers import Prediction
from pipelines import modalities
from pipelines.modalities import Feature
from pipelines.modalities.image import to_png
from pipelines.modalities.numbers import BOX, NumbersFeature

_SHORTEST = 96  # pixels of a drawn picture's shorter side at least
_OPACITY = 0.55  # of a mask's colours
_FRAME = (42, 200, 120)


def draw_prediction(picture_YXC: np.ndarray, *, targets: Feature, answer: Prediction) -> bytes:
    """A model's mask or box over its input, as a PNG file; see `is_drawn`."""
    if answer.mask is not None:
        return _with_mask(picture_YXC, answer.mask)
    return _with_box(picture_YXC, answer.values, targets=targets)


def draw_target(picture_YXC: np.ndarray, *, targets: Feature, array: np.ndarray) -> bytes:
    """The true mask or box over its input, as a PNG file."""
    value = modalities.load(targets.modality).decode(array, feature=targets, vocabulary=None)
    if isinstance(value, bytes):
        return _with_mask(picture_YXC, value)
    return _with_box(picture_YXC, value, targets=targets)


def is_drawn(inputs: Feature, targets: Feature) -> bool:
    """Whether answers can be drawn: a mask or a box of one picture."""
    return inputs.array_kind == "image" and targets.place in ("box", "mask")


def _enlarged(pixels_YXC: np.ndarray) -> Image.Image:
    """The picture in colours, each pixel as a square of whole size."""
    pixels = pixels_YXC[..., 0] if pixels_YXC.shape[-1] == 1 else pixels_YXC
    picture = Image.fromarray(np.asarray(pixels, dtype=np.uint8)).convert("RGB")
    times = max(1, -(-_SHORTEST // min(picture.size)))
    size = (picture.width * times, picture.height * times)
    return picture.resize(size, Image.Resampling.NEAREST)


def _with_mask(pixels_YXC: np.ndarray, mask: bytes) -> bytes:
    """The colours of all classes but the first, which is the ground, over the picture."""
    picture, ids = _enlarged(pixels_YXC), Image.open(io.BytesIO(mask))
    ids = ids.resize(picture.size, Image.Resampling.NEAREST)
    opaque = Image.fromarray(np.where(np.asarray(ids) > 0, round(255 * _OPACITY), 0).astype("u1"))
    return to_png(np.asarray(Image.composite(ids.convert("RGB"), picture, opaque)))


def _with_box(pixels_YXC: np.ndarray, sides: Mapping[str, float], *, targets: Feature) -> bytes:
    assert isinstance(targets, NumbersFeature)
    picture, span = _enlarged(pixels_YXC), targets.high - targets.low
    left, top, right, bottom = ((sides[name] - targets.low) / span for name in BOX)
    across, down = (sorted(pair) for pair in ((left, right), (top, bottom)))
    corners = [
        (round(x * (picture.width - 1)), round(y * (picture.height - 1)))
        for x, y in zip(across, down, strict=True)
    ]
    ImageDraw.Draw(picture).rectangle(corners, outline=_FRAME, width=2)
    return to_png(np.asarray(picture))
