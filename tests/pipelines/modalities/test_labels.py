import numpy as np
import pytest

from pipelines.errors import BadExampleError
from pipelines.modalities import labels
from pipelines.modalities.labels import LabelsFeature

FEATURE = LabelsFeature(parts={"verb": ("open", "close"), "noun": ("door", "box", "jar")})


def encode(value: object) -> np.ndarray:
    return labels.encode(value, feature=FEATURE, vocabulary=None)


@pytest.mark.parametrize(
    "value", [{"noun": "jar", "verb": "open"}, ["open", "jar"], "open,jar", ("open", "jar")]
)
def test_names_of_all_parts_become_ids_in_the_order_of_the_parts(value):
    array = encode(value)
    assert (array.dtype, array.ndim, array.tolist()) == (np.int32, FEATURE.rank, [0, 2])


def test_decoded_names_come_back():
    names = labels.decode(np.array([1, 0]), feature=FEATURE, vocabulary=None)
    assert names == {"verb": "close", "noun": "door"}
    assert encode(names).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"verb": "open"}, r"wrong names: \['verb'\], not verb, noun"),
        (["open"], "wrong length: 1 values for verb, noun"),
        (["jar", "open"], "unknown class: 'jar', not of open, close"),
        (3, "wrong type: int, not a value for each name"),
    ],
)
def test_other_values_are_refused_with_the_reason(value, reason):
    with pytest.raises(BadExampleError, match=reason):
        encode(value)


def test_feature_says_what_a_model_gives_for_it():
    assert FEATURE.loss == "grouped_cross_entropy"
    assert (FEATURE.num_outputs, FEATURE.output_groups) == (5, (2, 3))
    again = LabelsFeature.model_validate_json(FEATURE.model_dump_json())
    assert again == FEATURE
    assert list(again.parts) == ["verb", "noun"]
