import numpy as np
import pytest

from pipelines.errors import BadExampleError
from pipelines.modalities import text
from pipelines.modalities.text import TextFeature
from pipelines.vocabulary import EOS_ID, Vocabulary

VOCABULARY = Vocabulary.train(["in 3 days", "Café"] * 4, size=300, commands=("to_english",))
FEATURE = TextFeature()


def encode(value: object, *, max_tokens: int = 256) -> np.ndarray:
    feature = TextFeature(max_tokens=max_tokens)
    return text.encode(value, feature=feature, vocabulary=VOCABULARY)


def test_encoded_ends_in_eos_and_comes_back():
    array = encode("in 3 days")
    assert array.dtype == np.int32
    assert array.tolist() == [*VOCABULARY.encode("in 3 days"), EOS_ID]
    assert text.decode(array, feature=FEATURE, vocabulary=VOCABULARY) == "in 3 days"


def test_what_follows_the_first_eos_is_not_read():
    ids = [2, *VOCABULARY.encode("in 3"), EOS_ID, *VOCABULARY.encode("days"), 0, 0]
    assert text.decode(np.array(ids), feature=FEATURE, vocabulary=VOCABULARY) == "in 3"


def test_spellings_of_one_string_are_one_string():
    composed, decomposed = "Caf\u00e9 3", " Cafe\u0301\u00a0\n3 "
    assert encode(composed).tolist() == encode(decomposed).tolist()
    assert encode(composed.encode()).tolist() == encode(composed).tolist()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"in 3 \xe9", "not UTF-8: byte 5 is 0xe9"),
        ("", "empty text"),
        (" \n", "empty text"),
        (None, "wrong type: NoneType"),
        (3, "wrong type: int"),
    ],
)
def test_what_is_not_text_is_refused_with_the_reason(value: object, reason: str):
    with pytest.raises(BadExampleError, match=reason):
        encode(value)


def test_longer_than_the_feature_allows_is_refused():
    with pytest.raises(BadExampleError, match="tokens, at most 3"):
        encode("in 3 days in 3 days", max_tokens=3)
