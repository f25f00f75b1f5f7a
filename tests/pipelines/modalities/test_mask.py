import io

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import BadExampleError
from pipelines.modalities import mask
from pipelines.modalities.image import to_png
from pipelines.modalities.mask import MaskFeature

FEATURE = MaskFeature(height=2, width=3, classes=("sky", "tree", "car"))
IDS = np.array([[0, 1, 2], [2, 2, 0]], np.uint8)


def encode(value: object, feature: MaskFeature = FEATURE) -> np.ndarray:
    return mask.encode(value, feature=feature, vocabulary=None)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def test_pixel_values_are_class_ids():
    array = encode(to_png(IDS))
    assert (array.dtype, array.ndim, array.tolist()) == (np.uint8, FEATURE.rank, IDS.tolist())


@pytest.mark.parametrize("mode", ["uint16", "bool"])
def test_deep_and_black_and_white_masks_are_read_too(mode):
    ids = np.minimum(IDS, 1) if mode == "bool" else IDS
    assert encode(png(Image.fromarray(ids.astype(mode)))).tolist() == ids.tolist()


def test_decoded_mask_is_a_coloured_png_that_comes_back_to_the_bit():
    data = mask.decode(IDS, feature=FEATURE, vocabulary=None)
    picture = Image.open(io.BytesIO(data))
    assert encode(data).tolist() == IDS.tolist()
    colours = {tuple(pixel) for pixel in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
    assert (picture.mode, len(colours)) == ("P", 3)
    assert (0, 0, 0) in colours


def test_other_sizes_keep_the_nearest_pixel_and_make_no_new_class():
    big = np.kron(IDS, np.ones((5, 5), np.uint8))
    assert encode(to_png(big)).tolist() == IDS.tolist()
    feature = FEATURE.model_copy(update={"height": 7, "width": 7})
    ends = np.array([[0, 2], [2, 0]], np.uint8)
    assert set(encode(to_png(ends), feature).reshape(-1).tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (to_png(np.array([[0, 3]], np.uint8)), "unknown class: id 3, not 0 to 2"),
        (to_png(np.zeros((2, 3, 3), np.uint8)), "not a mask: pixels are RGB, not one class id"),
        (b"hello", "not an image"),
        ("a.png", "wrong type: str"),
    ],
)
def test_other_pictures_are_refused_with_the_reason(data, reason):
    with pytest.raises(BadExampleError, match=reason):
        encode(data)


def test_feature_says_what_a_model_gives_for_it():
    assert (FEATURE.loss, FEATURE.num_outputs, FEATURE.net) == ("cross_entropy", 3, "mask")
