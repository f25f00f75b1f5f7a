"""Media as text: pictures and sounds as `data:` URIs, so that a page needs no other file."""

import base64
from typing import Literal

Kind = Literal["text", "image", "audio"]

_SIGNATURES: tuple[tuple[bytes, str, Kind], ...] = (
    (b"\x89PNG", "image/png", "image"),
    (b"RIFF", "audio/wav", "audio"),
)


def sample_input(value: object) -> tuple[str, Kind]:
    """What a modality's `decode` gave, as text or as a data URI, with its kind."""
    if isinstance(value, bytes):
        for signature, media_type, kind in _SIGNATURES:
            if value.startswith(signature):
                return data_uri(value, media_type=media_type), kind
    return str(value), "text"


def data_uri(data: bytes, *, media_type: str) -> str:
    """Bytes inside a URI, RFC 2397."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
