import numpy as np
import pytest

from pipelines.errors import BadExampleError
from pipelines.modalities import numbers
from pipelines.modalities.numbers import BOX, NumbersFeature

FEATURE = NumbersFeature(names=("height", "age"), low=-10, high=30)
BOXES = NumbersFeature(names=BOX, high=32)


def encode(value: object, feature: NumbersFeature = FEATURE) -> np.ndarray:
    return numbers.encode(value, feature=feature, vocabulary=None)


@pytest.mark.parametrize("value", [[0, 30], {"age": 30, "height": 0}, "0, 30", ["0", 30.0]])
def test_numbers_are_scaled_to_shares_of_the_range(value):
    array = encode(value)
    assert (array.dtype, array.ndim, array.tolist()) == (np.float32, FEATURE.rank, [0.25, 1.0])


def test_decoded_numbers_have_their_names_and_units_again():
    assert numbers.decode(np.array([0.25, 1.5]), feature=FEATURE, vocabulary=None) == {
        "height": 0.0,
        "age": 50.0,  # a model's answer may lie outside
    }


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([0], "wrong length: 1 values for height, age"),
        ([0, 31], "out of range: age is 31, not -10 to 30"),
        ([float("nan"), 1], "not finite: height is nan"),
        ([float("inf"), 1], "not finite: height is inf"),
        ([0, "tall"], "not a number: age is 'tall'"),
        ([0, True], "not a number: age is True"),
        ([0, None], "not a number: age is None"),
        ([10**400, 0], "not a number: height is 1000"),
        ({"height": 1}, r"wrong names: \['height'\], not height, age"),
        (b"12", "wrong type: bytes"),
    ],
)
def test_other_values_are_refused_with_the_reason(value, reason):
    with pytest.raises(BadExampleError, match=reason):
        encode(value)


def test_box_turned_inside_out_is_refused():
    assert encode([0, 8, 16, 32], BOXES).tolist() == [0.0, 0.25, 0.5, 1.0]
    with pytest.raises(BadExampleError, match="not a box: left, top, right, bottom are"):
        encode([16, 8, 0, 32], BOXES)


def test_feature_says_what_a_model_gives_for_it():
    assert (FEATURE.loss, FEATURE.num_outputs) == ("squared_error", 2)
    with pytest.raises(ValueError, match=r"low 1.0 is not below high 1.0"):
        NumbersFeature(names=("x",), low=1)
