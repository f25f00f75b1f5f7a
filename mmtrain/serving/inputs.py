"""Inputs of requests: what was sent, checked before it is decoded, and as `build` would store it.

What a file is, its first bytes say; a content type that tells another story is refused. Formats
that could make a decoder open other files (playlists, PostScript) are not among those taken.
Sizes are read from headers before anything is decoded, and decoders stop at their bounds.
"""

import base64
import binascii
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soundfile

from mmtrain.serving.config import Limits
from mmtrain.serving.problems import RequestError, too_large
from pipelines import modalities
from pipelines.errors import BadExampleError
from pipelines.modalities import Feature
from pipelines.modalities.audio import AudioFeature
from pipelines.modalities.image import ImageFeature
from pipelines.modalities.video import VideoFeature
from pipelines.vocabulary import Vocabulary

_MAX_CHANNELS = 8
_LAYER_3 = tuple(bytes((0xFF, second)) for second in (0xFB, 0xFA, 0xF3, 0xF2, 0xE3, 0xE2))
_LEAST_RATE_HZ, _MOST_RATE_HZ = 1_000, 192_000


@dataclass(frozen=True, slots=True)
class Format:
    """A file format that is taken: its name, the modalities it can be, how it begins."""

    name: str
    modalities: tuple[str, ...]
    begins: Callable[[bytes], bool]


FORMATS = (
    Format("PNG", ("image", "video"), lambda head: head.startswith(b"\x89PNG\r\n\x1a\n")),
    Format("JPEG", ("image",), lambda head: head.startswith(b"\xff\xd8\xff")),
    Format("GIF", ("image", "video"), lambda head: head.startswith((b"GIF87a", b"GIF89a"))),
    Format("WebP", ("image",), lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP"),
    Format("BMP", ("image",), lambda head: head.startswith(b"BM")),
    Format("TIFF", ("image",), lambda head: head.startswith((b"II*\0", b"MM\0*"))),
    Format("MP4", ("video",), lambda head: head[4:8] == b"ftyp"),
    Format(
        "WebM or Matroska",
        ("video",),
        lambda head: head.startswith(b"\x1aE\xdf\xa3") and (b"webm" in head or b"matroska" in head),
    ),
    Format("AVI", ("video",), lambda head: head[:4] == b"RIFF" and head[8:12] == b"AVI "),
    Format("WAV", ("audio",), lambda head: head[:4] == b"RIFF" and head[8:12] == b"WAVE"),
    Format("FLAC", ("audio",), lambda head: head.startswith(b"fLaC")),
    Format("Ogg", ("audio",), lambda head: head.startswith(b"OggS")),
    Format(
        "MP3",
        ("audio",),
        lambda head: head.startswith((b"ID3", *_LAYER_3)),
    ),
    Format("AIFF", ("audio",), lambda head: head[:4] == b"FORM" and head[8:11] == b"AIF"),
)


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


def sniff(data: bytes) -> Format | None:
    """The format that a file begins like; None: none that is taken."""
    head = data[:64]
    return next((format for format in FORMATS if format.begins(head)), None)


def possible_modalities(sent: Sent) -> tuple[str, ...]:
    """What a file can be the input of; a string can be of any."""
    if isinstance(sent.value, str):
        return modalities.names()
    declared = sent.content_type.partition("/")[0]
    found = sniff(sent.value)
    if found is None or declared == "text":
        return tuple(filter(modalities.is_written, modalities.names()))
    return (declared,) if declared in found.modalities else found.modalities


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
    if isinstance(feature, ImageFeature):
        return feature.model_copy(update={"max_pixels": min(feature.max_pixels, limits.max_pixels)})
    if isinstance(feature, VideoFeature):
        return feature.model_copy(
            update={
                "max_pixels": min(feature.max_pixels, limits.max_frame_pixels),
                "max_frames": min(feature.max_frames, limits.max_frames),
            }
        )
    if isinstance(feature, AudioFeature):
        return feature.model_copy(update={"max_s": min(feature.max_s, limits.max_sound_s)})
    return feature


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
    taken = ", ".join(format.name for format in FORMATS if modality in format.modalities)
    found, declared = sniff(data), content_type.partition("/")[0]
    if found is None:
        raise RequestError(
            415,
            f"the file is of no format of {modality} that is taken",
            value=f"{len(data):,} bytes that begin with {data[:8]!r}",
            remedy=f"send {taken}",
        )
    if modality not in found.modalities:
        raise _mislabelled(f"a {found.name} file", wanted=f"{modality}: {taken}")
    if declared in ("image", "audio", "video", "text") and declared not in found.modalities:
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
    taken = ", ".join(format.name for format in FORMATS if modality in format.modalities)
    return f"send a whole {taken} file within the limits of /v1/tasks"
