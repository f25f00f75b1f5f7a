import numpy as np
import pytest

from pipelines.errors import BadExampleError
from pipelines.modalities import multilabel
from pipelines.modalities.multilabel import MultiLabelFeature

FEATURE = MultiLabelFeature(classes=("cat", "dog", "cow"))


def encode(value: object) -> np.ndarray:
    return multilabel.encode(value, feature=FEATURE, vocabulary=None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["cow", "cat"], [1, 0, 1]),
        ("cow, cat", [1, 0, 1]),
        (["dog", "dog"], [0, 1, 0]),
        ([], [0, 0, 0]),
        ("", [0, 0, 0]),
    ],
)
def test_names_become_ones(value, expected):
    array = encode(value)
    assert (array.dtype, array.ndim, array.tolist()) == (np.uint8, FEATURE.rank, expected)


def test_decoded_names_come_back():
    names = multilabel.decode(encode("cow,dog"), feature=FEATURE, vocabulary=None)
    assert names == ["dog", "cow"]
    assert encode(names).tolist() == [0, 1, 1]


def test_numbers_name_classes_as_in_labels():
    feature = MultiLabelFeature(classes=("0", "1"))
    assert multilabel.encode([1], feature=feature, vocabulary=None).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["cat", "horse"], "unknown class: 'horse', not of cat, dog, cow"),
        ({"cat": 1}, "wrong type: dict, not a list of names or a text"),
        (None, "wrong type: NoneType"),
        (b"\xff", "wrong type: bytes"),
    ],
)
def test_other_values_are_refused_with_the_reason(value, reason):
    with pytest.raises(BadExampleError, match=reason):
        encode(value)


def test_feature_says_what_a_model_gives_for_it():
    assert (FEATURE.loss, FEATURE.num_outputs, FEATURE.net) == (
        "sigmoid_cross_entropy",
        3,
        "multilabel",
    )
