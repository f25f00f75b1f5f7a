"""Requests off the wire: a bounded body, and what it asks, from JSON or multipart/form-data."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from mmtrain.serving.config import ServingConfig
from mmtrain.serving.door import Guest
from mmtrain.serving.inputs import Sent
from mmtrain.serving.problems import RequestError, too_large
from mmtrain.serving.schema import PredictRequest
from pipelines.errors import first_problem

_ENVELOPE_BYTES = 64 * 1024  # names, boundaries and quotes around an input
_MAX_FIELDS = 80
_FIELDS = ("task", "modality", "beam_size")


@dataclass(frozen=True, slots=True)
class Question:
    """A request: its fields, and its input."""

    fields: PredictRequest
    sent: Sent


async def read_body(request: Request, *, guest: Guest, config: ServingConfig) -> bytes:
    """All of the body, as long as it is within bounds.

    Raises:
        RequestError: too large, packed, too slow, the house is full, or the sender went away.
    """
    packed = request.headers.get("content-encoding", "identity")
    if packed != "identity":
        raise RequestError(
            415, "a packed body is not read", value=packed, remedy="send it without an encoding"
        )
    most = config.limits.max_upload_bytes * 4 // 3 + _ENVELOPE_BYTES  # base64: 4 letters for 3
    promised = request.headers.get("content-length", "")
    if promised.isdecimal() and int(promised) > most:
        raise too_large("body", size=int(promised), most=most, unit="bytes")
    chunks, size = list[bytes](), 0
    try:
        with guest.uploading():
            async for chunk in _not_too_slow(request.stream(), config=config):
                size += len(chunk)
                if size > most:
                    raise too_large("body", size=size, most=most, unit="bytes")
                guest.hold(len(chunk))
                chunks.append(chunk)
    except ClientDisconnect:
        raise RequestError(400, "the sender went away", value=f"after {size:,} bytes") from None
    return b"".join(chunks)


async def _not_too_slow(
    stream: AsyncIterator[bytes], *, config: ServingConfig
) -> AsyncGenerator[bytes, None]:
    """The chunks of a body. In every `stall_s` so many bytes must come as make the least rate; one
    byte now and then does not hold a place.

    Raises:
        RequestError: they do not.
    """
    loop = asyncio.get_running_loop()
    wanted = config.stall_s * config.min_upload_bytes_per_s
    size, floor, ends = 0, wanted, loop.time() + config.stall_s
    while True:
        try:
            async with asyncio.timeout_at(ends):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise RequestError(
                408,
                "the body arrives too slowly",
                value=f"{size:,} bytes so far",
                remedy=f"send at least {config.min_upload_bytes_per_s:,} bytes a second",
            ) from None
        if chunk is None:
            return
        size += len(chunk)
        if size >= floor:
            floor, ends = size + wanted, loop.time() + config.stall_s
        yield chunk


async def parse_request(request: Request, body: bytes) -> Question:
    """What a body asks.

    Raises:
        RequestError: it is of another content type, malformed, or lacks a field.
    """
    kind = request.headers.get("content-type", "")
    media = kind.partition(";")[0].strip().lower()
    if media == "application/json":
        return _from_json(body)
    if media == "multipart/form-data":
        return _from_form(await _parse_form(request, body))
    raise RequestError(
        415,
        "the content type is not read",
        value=kind or "none",
        remedy="send application/json, or multipart/form-data with a file",
    )


def _from_json(body: bytes) -> Question:
    try:
        fields = PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise _malformed(error) from None
    return Question(fields, Sent(fields.input, "string"))


def _malformed(error: ValidationError) -> RequestError:
    broken = error.errors()[0]["type"] == "json_invalid"
    return RequestError(
        400 if broken else 422,
        "the body is not JSON" if broken else "a field is wrong",
        value=first_problem(error).encode("utf-8", "replace").decode(),
        remedy="see /docs",
    )


async def _parse_form(request: Request, body: bytes) -> FormData:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers,
        stream(),
        max_files=1,
        max_fields=_MAX_FIELDS,
        max_part_size=len(body) + 1,
    )
    try:
        return await parser.parse()
    except (MultiPartException, FormParserError, UnicodeError, LookupError) as error:
        raise RequestError(
            400,
            "the form cannot be read",
            value=str(error)[:120] or type(error).__name__,
            remedy="send one file and at most 80 fields as multipart/form-data; see /docs",
        ) from None


def _from_form(form: FormData) -> Question:
    """Fields beside the file, which is called `file` or `input`."""
    for name in form:
        if name not in (*_FIELDS, "subtasks", "file", "input"):
            raise RequestError(
                422,
                "the form has a field that is not known",
                value=name,
                remedy=f"send file, input, subtasks, {', '.join(_FIELDS)}",
            )
    given = form.get("input", form.get("file"))
    if given is None:
        raise RequestError(
            422, "the form has no input", remedy="send `file`, a file, or `input`, a text"
        )
    if isinstance(given, UploadFile):
        sent = Sent(given.file.read(), "file", given.content_type or "")
    else:
        sent = Sent(given, "string")
    strings = {name: form[name] for name in _FIELDS if isinstance(form.get(name), str)}
    named = [part for text in form.getlist("subtasks") for part in str(text).split(",")]
    subtasks = [part.strip() for part in named if part.strip()]
    try:
        fields = PredictRequest.model_validate({**strings, "input": "", "subtasks": subtasks})
    except ValidationError as error:
        raise _malformed(error) from None
    return Question(fields, sent)
