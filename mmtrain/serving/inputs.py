"""Inputs of requests: what was sent, checked before it is decoded, and as `build` would store it.

What a file is, its first bytes say; a content type that tells another story is refused. Formats
that could make a decoder open other files (playlists, PostScript) are not among those taken.
Sizes are read from headers before anything is decoded, and decoders stop at their bounds.
"""

import base64
import binascii
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soundfile

from mmtrain.serving.config import Limits
from mmtrain.serving.problems import RequestError, too_large
from pipelines import modalities
from pipelines.errors import BadExampleError
from pipelines.file_formats import FileFormat
from pipelines.modalities import Feature
from pipelines.modalities.audio import AudioFeature
from pipelines.vocabulary import Vocabulary

_MAX_CHANNELS = 8
_LEAST_RATE_HZ, _MOST_RATE_HZ = 1_000, 192_000


@dataclass(frozen=True, slots=True)
class Sent:
    """An input as it came.

    Args:
        value: text, base64, or a file's bytes.
        form: which of them.
        content_type: that the sender gave a file; empty: none.
    """

    value: str | bytes
    form: Literal["string", "file"]
    content_type: str = ""


def formats_of(modality: str) -> tuple[FileFormat, ...]:
    """Formats of files that a modality takes; none: any."""
    return modalities.load(modality).FEATURE.formats


def sniff(data: bytes, *, of: Iterable[str] = ()) -> FileFormat | None:
    """The format that a file begins like, of these or the shipped modalities; None: of none."""
    names = (*of, *modalities.names())
    return next((one for name in names for one in formats_of(name) if one.begins(data)), None)


def possible_modalities(sent: Sent, *, of: Sequence[str]) -> tuple[str, ...]:
    """What a file can be the input of, of these modalities; a string can be of any."""
    if isinstance(sent.value, str):
        return tuple(of)
    declared = sent.content_type.partition("/")[0]
    found = sniff(sent.value, of=of)
    if found is None or declared == "text":
        return tuple(filter(modalities.is_written, of))
    if declared in modalities.names() and found in formats_of(declared):
        return tuple(name for name in of if name == declared)
    return tuple(name for name in of if found in formats_of(name))


def raw_value(sent: Sent, *, modality: str, limits: Limits) -> str | bytes:
    """The text or class name, or the bytes of a file that is of the modality.

    Raises:
        RequestError: too large, not base64, or of another kind.
    """
    if modalities.is_written(modality):
        return _text(sent, limits=limits)
    data = _from_base64(sent.value) if isinstance(sent.value, str) else sent.value
    if len(data) > limits.max_upload_bytes:
        raise too_large("file", size=len(data), most=limits.max_upload_bytes, unit="bytes")
    _check_kind(data, modality=modality, content_type=sent.content_type)
    return data


def read_input(
    value: str | bytes, *, feature: Feature, vocabulary: Vocabulary | None, limits: Limits
) -> np.ndarray:
    """A raw value as `build` would store it, decoded within the limits.

    Raises:
        RequestError: it is too large, damaged, or does not suit the feature.
    """
    if isinstance(feature, AudioFeature) and isinstance(value, bytes):
        _check_sound(value, limits=limits)
    encode = modalities.load(feature.modality).encode
    try:
        return encode(value, feature=bounded_feature(feature, limits), vocabulary=vocabulary)
    except BadExampleError as error:
        shown = value[:60] if isinstance(value, str) else f"{len(value):,} bytes"
        raise RequestError(
            422,
            f"the input cannot be read as {feature.modality}: {error}",
            value=shown,
            remedy=_remedy(feature.modality),
        ) from None


def bounded_feature(feature: Feature, limits: Limits) -> Feature:
    """The feature with the tighter of its own bounds and the server's."""
    tighter = {
        field: min(getattr(feature, field), getattr(limits, limit))
        for field, limit in feature.bounds.items()
    }
    return feature.model_copy(update=tighter)


def _text(sent: Sent, *, limits: Limits) -> str:
    value = sent.value
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            if found := sniff(value):
                raise _mislabelled(f"a {found.name} file", wanted="a text") from None
            raise RequestError(
                422,
                "the text is not UTF-8",
                value=f"byte {error.start} is 0x{value[error.start]:02x}",
                remedy="save it as UTF-8",
            ) from None
    if len(value) > limits.max_text_chars:
        raise too_large("text", size=len(value), most=limits.max_text_chars, unit="characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            422,
            "the text is not Unicode",
            value=f"a lone surrogate U+{ord(value[error.start]):04X} at {error.start}",
            remedy="send pairs of surrogates, or none",
        ) from None
    return value


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            422,
            f"the input is not base64: {error}",
            value=repr(text[:40]),
            remedy="send the file's bytes in base64, or the file itself as multipart/form-data",
        ) from None


def _check_kind(data: bytes, *, modality: str, content_type: str) -> None:
    """Refuses a file that is not what it is sent as.

    Raises:
        RequestError: its bytes are of no format taken, or of another kind than is said.
    """
    formats = formats_of(modality)
    if not formats:
        return
    taken = ", ".join(one.name for one in formats)
    found, declared = sniff(data, of=(modality,)), content_type.partition("/")[0]
    if found is None:
        raise RequestError(
            415,
            f"the file is of no format of {modality} that is taken",
            value=f"{len(data):,} bytes that begin with {data[:8]!r}",
            remedy=f"send {taken}",
        )
    if found not in formats:
        raise _mislabelled(f"a {found.name} file", wanted=f"{modality}: {taken}")
    if declared in ("image", "audio", "video", "text") and found not in formats_of(declared):
        raise _mislabelled(f"{content_type}, but a {found.name} file", wanted=modality)


def _mislabelled(given: str, *, wanted: str) -> RequestError:
    return RequestError(
        415, "the file is not what it is sent as", value=given, remedy=f"send {wanted}"
    )


def _check_sound(data: bytes, *, limits: Limits) -> None:
    """Refuses a sound whose header promises more samples than are decoded."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            channels, rate_hz, frames = file.channels, file.samplerate, file.frames
    except soundfile.LibsndfileError as error:
        raise RequestError(
            422,
            f"the input cannot be read as audio: {error}",
            value=f"{len(data):,} bytes",
            remedy=_remedy("audio"),
        ) from None
    if channels > _MAX_CHANNELS:
        raise too_large("sound", size=channels, most=_MAX_CHANNELS, unit="channels")
    if not _LEAST_RATE_HZ <= rate_hz <= _MOST_RATE_HZ:
        raise RequestError(
            422,
            "the sound's rate is out of range",
            value=f"{rate_hz:,} Hz",
            remedy=f"send {_LEAST_RATE_HZ:,} to {_MOST_RATE_HZ:,} Hz",
        )
    if frames * channels > limits.max_samples:
        raise too_large("sound", size=frames * channels, most=limits.max_samples, unit="samples")


def _remedy(modality: str) -> str:
    if modality == "text":
        return "send a shorter text, or another"
    if modalities.is_written(modality):
        return "send one that GET /v1/tasks lists"
    taken = ", ".join(one.name for one in formats_of(modality))
    return f"send a whole {taken} file within the limits of /v1/tasks"
