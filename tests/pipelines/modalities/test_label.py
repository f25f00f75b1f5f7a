import numpy as np
import pytest

from pipelines.errors import BadExampleError
from pipelines.modalities import label
from pipelines.modalities.label import LabelFeature
from pipelines.vocabulary import Vocabulary

FEATURE = LabelFeature(classes=("cat", "dog"))
VOCABULARY = Vocabulary.train([], size=258, commands=())


def test_a_class_is_its_place():
    array = label.encode("dog", feature=FEATURE, vocabulary=VOCABULARY)
    assert array.tolist() == [1]
    assert array.dtype == np.int32
    assert label.decode(array, feature=FEATURE, vocabulary=VOCABULARY) == "dog"


def test_unknown_class_is_refused_with_those_that_are():
    with pytest.raises(BadExampleError, match="unknown class: 'cow', not of cat, dog"):
        label.encode("cow", feature=FEATURE, vocabulary=VOCABULARY)
