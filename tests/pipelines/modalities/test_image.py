import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import BadExampleError
from pipelines.modalities import image
from pipelines.modalities.image import ImageFeature, to_png
from pipelines.vocabulary import Vocabulary

GREY = ImageFeature(height=2, width=2, channels=1)
RGB = ImageFeature(height=2, width=2, channels=3)
VOCABULARY = Vocabulary.train([], size=258, commands=())


def encode(picture: Image.Image | bytes, *, feature: ImageFeature) -> np.ndarray:
    if isinstance(picture, Image.Image):
        file = io.BytesIO()
        picture.save(file, format="TIFF" if picture.mode == "F" else "PNG")
        picture = file.getvalue()
    return image.encode(picture, feature=feature, vocabulary=VOCABULARY)


def test_grey_comes_back_pixel_for_pixel():
    pixels = np.array([[0, 10], [200, 255]], np.uint8)
    array = encode(Image.fromarray(pixels), feature=GREY)
    assert (array.shape, array.dtype) == ((2, 2, 1), np.uint8)
    assert array[..., 0].tolist() == pixels.tolist()
    png = image.decode(array, feature=GREY, vocabulary=VOCABULARY)
    assert encode(png, feature=GREY).tolist() == array.tolist()


def test_grey_fills_three_channels():
    array = encode(Image.fromarray(np.full((2, 2), 9, np.uint8)), feature=RGB)
    assert array.tolist() == [[[9, 9, 9]] * 2] * 2


def test_colours_become_luminance():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    assert encode(Image.fromarray(red), feature=GREY)[0, 0, 0] == 76  # 0.299 * 255


def test_sixteen_bits_are_scaled_and_not_clipped():
    deep = Image.fromarray(np.array([[0, 65535], [32896, 257]], np.uint16))
    assert encode(deep, feature=GREY)[..., 0].tolist() == [[0, 255], [128, 1]]


def test_floats_are_levels_from_zero_to_one():
    floats = Image.fromarray(np.array([[0.0, 1.0], [0.5, 2.0]], np.float32))
    assert encode(floats, feature=GREY)[..., 0].tolist() == [[0, 255], [128, 255]]


def test_transparent_lies_on_black():
    clear = np.full((2, 2, 4), 255, np.uint8)
    clear[0, :, 3] = 0
    assert encode(Image.fromarray(clear), feature=GREY)[..., 0].tolist() == [[0, 0], [255, 255]]


def test_half_transparent_colour_is_half_as_bright_in_three_channels():
    half = np.array([[[200, 100, 0, 128]] * 2] * 2, np.uint8)
    assert encode(Image.fromarray(half), feature=RGB)[0, 0].tolist() == [100, 50, 0]
    grey = Image.merge("LA", [Image.new("L", (2, 2), 200), Image.new("L", (2, 2), 128)])
    assert encode(grey, feature=RGB)[0, 0].tolist() == [100, 100, 100]


def test_palette_is_resolved_as_coarsely_as_it_was_stored():
    palette = Image.fromarray(np.full((2, 2, 3), 40, np.uint8)).convert("P")
    assert (
        np.abs(encode(palette, feature=RGB).astype(int) - 40).max() <= 12
    )  # web palette is coarse


def test_other_sizes_are_resized():
    array = encode(Image.fromarray(np.full((7, 5), 80, np.uint8)), feature=GREY)
    assert array[..., 0].tolist() == [[80, 80], [80, 80]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (to_png(np.arange(4096, dtype=np.uint8).reshape(64, 64))[:60], "unreadable image"),
        ("a string", "wrong type: str"),
    ],
)
def test_unreadable_is_refused_with_the_reason(data: object, reason: str):
    with pytest.raises(BadExampleError, match=reason):
        image.encode(data, feature=GREY, vocabulary=VOCABULARY)


def test_every_cut_inside_the_pixels_is_refused():
    data = to_png(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8))
    for length in range(0, len(data) - 40, 7):  # the last bytes hold checksums and the end mark
        with pytest.raises(BadExampleError):
            image.encode(data[:length], feature=GREY, vocabulary=VOCABULARY)


def test_size_is_refused_before_decoding():
    feature = ImageFeature(height=2, width=2, channels=1, max_pixels=99)
    with pytest.raises(BadExampleError, match="image too large: 10 x 10 pixels, at most 99"):
        encode(Image.fromarray(np.zeros((10, 10), np.uint8)), feature=feature)


def test_random_damage_is_refused_or_read_and_never_anything_else():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    for file_format in ("PNG", "JPEG", "GIF", "BMP"):
        file = io.BytesIO()
        picture.save(file, format=file_format)
        for _ in range(100):
            damaged = np.frombuffer(file.getvalue(), np.uint8).copy()
            damaged[rng.integers(len(damaged), size=3)] = rng.integers(256, size=3)
            with contextlib.suppress(BadExampleError):
                assert encode(damaged.tobytes(), feature=RGB).shape == (2, 2, 3)
