"""Inputs: what is read, and why the rest is refused before it can do harm."""

import base64
import io
import struct
import time
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmtrain.serving.config import Limits
from mmtrain.serving.inputs import Sent, possible_modalities, raw_value, read_input, sniff
from mmtrain.serving.problems import RequestError
from pipelines.modalities import Feature, names
from pipelines.modalities.audio import AudioFeature
from pipelines.modalities.image import ImageFeature
from pipelines.modalities.video import VideoFeature
from tests.mmtrain.example_kinds import clip, picture
from tests.mmtrain.example_server import wav

IMAGE = ImageFeature(height=16, width=16, channels=1)
VIDEO = VideoFeature(height=16, width=16, channels=1, num_frames=4)
AUDIO = AudioFeature(representation="log_mel", max_s=2.0)
LIMITS = Limits(max_upload_bytes=200_000, max_pixels=10_000, max_frames=8, max_sound_s=2.0)
BOMB_SIDE = 12_000


def saved(form: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, format=form)
    return file.getvalue()


def sound(form: str, *, channels: int = 1, rate_hz: int = 16_000, frames: int = 800) -> bytes:
    file = io.BytesIO()
    samples = np.zeros((frames, channels), dtype=np.float32)
    soundfile.write(file, samples, rate_hz, format=form)
    return file.getvalue()


def png_bomb() -> bytes:
    """A PNG of 144 million pixels in 20 KB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    row = bytes(1 + BOMB_SIDE // 8)
    head = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 1, 0, 0, 0, 0)
    data = zlib.compress(row * BOMB_SIDE, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def read(data: bytes, feature: Feature, *, content_type: str = "") -> np.ndarray:
    sent = Sent(data, "file", content_type)
    value = raw_value(sent, modality=feature.modality, limits=LIMITS)
    return read_input(value, feature=feature, vocabulary=None, limits=LIMITS)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        *((saved(form), form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF")),
        (saved("WEBP"), "WebP"),
        *((sound(form), form) for form in ("WAV", "FLAC", "MP3", "AIFF")),
        (sound("OGG"), "Ogg"),
    ],
)
def test_a_format_is_known_by_how_it_begins(data: bytes, name: str):
    found = sniff(data)
    assert found is not None
    assert found.name == name
    feature = IMAGE if found in ImageFeature.formats else AUDIO
    assert read(data, feature).size


@pytest.mark.parametrize(
    "data",
    [b"#EXTM3U\nfile:///etc/passwd", b"ffconcat version 1.0\nfile x", b"%!PS-Adobe-3.0 EPSF", b""],
)
def test_formats_that_open_other_files_are_not_taken(data: bytes):
    for feature in (IMAGE, VIDEO, AUDIO):
        with pytest.raises(RequestError, match="of no format") as refused:
            read(data, feature)
        assert refused.value.status == 415


@pytest.mark.parametrize(
    ("data", "feature", "content_type", "words"),
    [
        (wav(0.1), IMAGE, "image/png", "a WAV file; send image: PNG"),
        (picture(1), AUDIO, "audio/wav", "a PNG file; send audio: WAV"),
        (picture(1), IMAGE, "audio/wav", "audio/wav, but a PNG file"),
        (clip(1), IMAGE, "text/plain", "text/plain, but a PNG file"),
    ],
)
def test_a_mislabelled_file_is_refused_with_what_it_is(
    data: bytes, feature: Feature, content_type: str, words: str
):
    with pytest.raises(RequestError, match=words) as refused:
        read(data, feature, content_type=content_type)
    assert refused.value.status == 415


@pytest.mark.parametrize(
    ("data", "feature", "status", "words"),
    [
        (picture(1)[:60], IMAGE, 422, "cannot be read as image"),
        (wav(0.1)[:900], AUDIO, 422, "truncated WAV"),
        (clip(1)[:200], VIDEO, 422, "cannot be read as video"),
        (wav(3.0), AUDIO, 422, "too long: 3.0 s, at most 2.0 s"),
        (bytes(200_001), IMAGE, 413, "200,001 bytes; send at most 200,000 bytes"),
        (sound("WAV", channels=9), AUDIO, 413, "9 channels; send at most 8"),
        (sound("WAV", rate_hz=500), AUDIO, 422, "500 Hz"),
    ],
)
def test_what_cannot_be_read_is_refused_with_cause_value_and_remedy(
    data: bytes, feature: Feature, status: int, words: str
):
    with pytest.raises(RequestError, match=words) as refused:
        read(data, feature)
    assert refused.value.status == status
    assert all(refused.value.to_dict().values())


def test_a_decompression_bomb_is_refused_by_its_header():
    bomb = png_bomb()
    assert len(bomb) < 60_000
    began_s = time.process_time()
    with pytest.raises(RequestError, match="12000 x 12000 pixels, at most 10000"):
        read(bomb, IMAGE)
    assert time.process_time() - began_s < 0.5


def test_a_sound_that_unpacks_to_too_much_is_refused_by_its_header():
    packed = sound("FLAC", channels=8, rate_hz=192_000, frames=384_000)
    few = LIMITS.model_copy(update={"max_samples": 1_000_000})
    with pytest.raises(RequestError, match="3,072,000 samples; send at most 1,000,000"):
        read_input(packed, feature=AUDIO, vocabulary=None, limits=few)


def test_a_video_of_too_many_frames_is_refused():
    frames = [Image.new("L", (4, 4), level) for level in range(0, 90, 10)]
    file = io.BytesIO()
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(RequestError, match="over 8 frames"):
        read(file.getvalue(), VIDEO)


@pytest.mark.parametrize(
    ("value", "status", "words"),
    [
        ("a" * 20_001, 413, "20,001 characters"),
        ("\ud800", 422, "lone surrogate U"),
        (b"\xff\xfe", 422, "0xff"),
        (picture(1), 415, "a PNG file; send a text"),
    ],
)
def test_a_text_that_is_none_is_refused(value: str | bytes, status: int, words: str):
    form = "string" if isinstance(value, str) else "file"
    with pytest.raises(RequestError, match=words) as refused:
        raw_value(Sent(value, form), modality="text", limits=LIMITS)
    assert refused.value.status == status


def test_a_text_may_begin_like_a_picture():
    sent = Sent(b"BMW is a car", "file", "text/plain")
    assert raw_value(sent, modality="text", limits=LIMITS) == "BMW is a car"


def test_base64_is_taken_strictly():
    sent = Sent(base64.b64encode(picture(1)).decode(), "string")
    assert raw_value(sent, modality="image", limits=LIMITS) == picture(1)
    with pytest.raises(RequestError, match="not base64"):
        raw_value(Sent("no base64!", "string"), modality="image", limits=LIMITS)


def test_what_a_file_is_tells_its_modality_unless_it_may_be_two():
    assert possible_modalities(Sent(wav(0.1), "file"), of=names()) == ("audio",)
    assert possible_modalities(Sent(picture(1), "file"), of=names()) == ("image", "video")
    assert possible_modalities(Sent(picture(1), "file", "image/png"), of=names()) == ("image",)
    assert possible_modalities(Sent(b"Peru", "file"), of=names()) == ("label", "text", "tree")
