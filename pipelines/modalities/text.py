"""Text: a string in Unicode to token ids of the joint vocabulary, ended by EOS.

Training and prediction see one normal form (NFC, runs of white space as one blank), so that two
spellings of one string are one string.
"""

import unicodedata
from typing import ClassVar

import numpy as np
from pydantic import Field

from pipelines.errors import BadExampleError
from pipelines.modalities import Feature
from pipelines.vocabulary import EOS_ID, Vocabulary


class TextFeature(Feature):
    """Token ids, int32 (L,), the last one EOS."""

    dtype: ClassVar[str] = "int32"

    modality: str = "text"
    max_tokens: int = Field(
        default=256, ge=2, description="Longest text kept, in tokens, EOS included."
    )

    @property
    def longest_shape(self) -> tuple[int, ...]:
        """A text of `max_tokens`."""
        return (self.max_tokens,)

    def example(self) -> str:
        """A number in figures."""
        return "7"


FEATURE = TextFeature


def text_of(value: object, *, feature: Feature) -> str:
    """The normal form of a raw text: what is tokenised, and what the vocabulary is trained on.

    Raises:
        BadExampleError: not text, not UTF-8, or empty.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadExampleError(
                f"not UTF-8: byte {error.start} is 0x{value[error.start]:02x}; save it as UTF-8"
            ) from error
    if not isinstance(value, str):
        raise BadExampleError(f"wrong type: {type(value).__name__}, not text")
    text = " ".join(unicodedata.normalize("NFC", value).split())
    if not text:
        raise BadExampleError("empty text: nothing but blanks")
    return text


def encode(value: object, *, feature: TextFeature, vocabulary: Vocabulary) -> np.ndarray:
    """Raw text, `str` or UTF-8 `bytes`, to int32 (L,).

    Raises:
        BadExampleError: not text, not UTF-8, empty, or longer than the feature's `max_tokens`.
    """
    return token_ids(
        text_of(value, feature=feature), max_tokens=feature.max_tokens, vocabulary=vocabulary
    )


def token_ids(text: str, *, max_tokens: int, vocabulary: Vocabulary) -> np.ndarray:
    """Token ids of a text in normal form, EOS last: int32 (L,), L at most `max_tokens`."""
    ids = [*vocabulary.encode(text), EOS_ID]
    if len(ids) > max_tokens:
        raise BadExampleError(f"too long: {len(ids)} tokens, at most {max_tokens}: {text[:40]!r}")
    return np.array(ids, dtype=np.int32)


def decode(array: np.ndarray, *, feature: Feature, vocabulary: Vocabulary) -> str:
    """Token ids up to the first EOS to text; padding and command tokens are left out."""
    ids = np.asarray(array).tolist()
    return vocabulary.decode(ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids)
