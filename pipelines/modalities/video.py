"""Video: the bytes of a video file to uint8 frames of one fixed number and size.

Any file that FFmpeg reads is taken. Frames count as they are stored, whatever their rate; every
`frame_step`-th is kept. A file is decoded to its end before any of it is used: one that is damaged
or cut short anywhere is refused, also where its window would have been whole.
"""

import io
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

import av
import av.error
import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image
from pydantic import Field, model_validator

from pipelines.errors import BadExampleError
from pipelines.file_formats import AVI, GIF, MP4, PNG, WEBM, FileFormat
from pipelines.modalities import Feature
from pipelines.modalities.image import fit
from pipelines.vocabulary import Vocabulary

SHOWN_FRAME_MS = 100
STRICT = {"err_detect": "explode"}  # stop at damage


class VideoFeature(Feature):
    """Pixels of frames, uint8 (T, Y, X, C)."""

    dtype: ClassVar[str] = "uint8"
    formats: ClassVar[tuple[FileFormat, ...]] = (PNG, GIF, MP4, WEBM, AVI)
    bounds: ClassVar[Mapping[str, str]] = {
        "max_pixels": "max_frame_pixels",
        "max_frames": "max_frames",
    }

    modality: str = "video"
    height: int = Field(ge=1, description="Rows, in pixels.")
    width: int = Field(ge=1, description="Columns, in pixels.")
    channels: Literal[1, 3] = Field(description="1 for grey, 3 for red, green and blue.")
    num_frames: int = Field(ge=1, description="Frames of an example.")
    frame_step: int = Field(default=1, ge=1, description="From one kept frame to the next.")
    window: Literal["centre", "start"] = Field(
        default="centre", description="Which part of a longer clip is kept."
    )
    min_frames: int = Field(
        default=1,
        ge=1,
        description="Fewest kept frames of a clip, the tubelet's length; the last one is held.",
    )
    max_frames: int = Field(default=3_000, ge=1, description="Longest file decoded, in frames.")
    max_pixels: int = Field(
        default=10_000_000, ge=1, description="Largest frame decoded, in pixels of the file."
    )

    @property
    def rank(self) -> int:
        """Frames, rows, columns and channels."""
        return 4

    @property
    def longest_shape(self) -> tuple[int, ...]:
        """All clips have one size."""
        return (self.num_frames, self.height, self.width, self.channels)

    def example(self) -> bytes:
        """An animated picture, long enough to be a clip; equal frames would be merged into one."""
        levels = np.arange(self.num_frames * self.frame_step) * 16 % 256
        shape = (self.height, self.width, self.channels)
        frames = np.stack([np.full(shape, level, dtype=np.uint8) for level in levels])
        return decode(frames, feature=self, vocabulary=None)

    @model_validator(mode="after")
    def _frames_fit(self) -> Self:
        if self.min_frames > self.num_frames:
            raise ValueError(f"min_frames {self.min_frames} is over num_frames {self.num_frames}")
        return self


FEATURE = VideoFeature


def encode(value: object, *, feature: VideoFeature, vocabulary: Vocabulary | None) -> np.ndarray:
    """The bytes of a video file to uint8 (num_frames, height, width, channels).

    Raises:
        BadExampleError: not a video, damaged, cut short, too long, too large, or of fewer than
            `min_frames` frames.
    """
    if not isinstance(value, bytes):
        raise BadExampleError(f"wrong type: {type(value).__name__}, not the bytes of a video")
    frames = list(read_frames(value, feature=feature))
    kept = kept_frames(len(frames), feature=feature)
    return np.stack([frames[place] for place in kept])


def kept_frames(count: int, *, feature: VideoFeature) -> list[int]:
    """Places of the kept frames in a clip of `count`; a short clip's last one is held.

    Raises:
        BadExampleError: fewer than `min_frames` can be kept.
    """
    step, wanted = feature.frame_step, feature.num_frames
    spare = max(0, count - (wanted - 1) * step - 1)
    first = spare // 2 if feature.window == "centre" else 0
    places = list(range(first, count, step))[:wanted]
    if len(places) < feature.min_frames:
        raise BadExampleError(
            f"clip too short: {count} frames, of which {len(places)} are kept at a step of {step}; "
            f"at least {feature.min_frames}"
        )
    return places + places[-1:] * (wanted - len(places))


def read_frames(data: bytes, *, feature: VideoFeature) -> Iterator[np.ndarray]:
    """All frames of a file in order, each uint8 (height, width, channels).

    FFmpeg conceals damage unless it is told to stop at it, and takes a file that ends early for a
    short one; what the header promises gives that away.

    Raises:
        BadExampleError: see `encode`.
    """
    if data.startswith(b"GIF8") and not data.rstrip(b"\0").endswith(b";"):
        raise BadExampleError(f"truncated video: no end mark in a GIF of {len(data)} bytes")
    try:
        with av.open(io.BytesIO(data), options=STRICT, metadata_errors="replace") as file:
            assert isinstance(file, InputContainer)
            yield from _frames_of(file, feature=feature)
    except (av.error.FFmpegError, ValueError) as error:
        raise BadExampleError(f"unreadable video: {error} ({len(data)} bytes)") from error


def _frames_of(file: InputContainer, *, feature: VideoFeature) -> Iterator[np.ndarray]:
    if not file.streams.video or file.streams.video[0].codec_context is None:
        raise BadExampleError("not a video: the file holds no pictures that FFmpeg decodes")
    stream, count = file.streams.video[0], 0
    stream.codec_context.options = STRICT | {"max_pixels": str(feature.max_pixels)}
    stream.codec_context.thread_count = 1
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > feature.max_pixels:
        raise BadExampleError(
            f"frames too large: {width} x {height} pixels, at most {feature.max_pixels}"
        )
    end_s = 0.0
    for frame in file.decode(stream):
        count += 1
        end_s = max(end_s, _end_s(frame, stream))
        if count > feature.max_frames:
            raise BadExampleError(f"video too long: over {feature.max_frames} frames")
        if frame.is_corrupt:
            raise BadExampleError(f"damaged video: frame {count} does not decode")
        picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
        yield fit(picture, height=feature.height, width=feature.width, channels=feature.channels)
    if count < stream.frames:
        raise BadExampleError(f"truncated video: {count} of {stream.frames} frames")
    promised_s = 0.0 if stream.frames else _promised_s(file, stream)
    if promised_s - end_s > 0.75 / float(stream.average_rate or 1):
        raise BadExampleError(f"truncated video: ends at {end_s:.2f} of {promised_s:.2f} s")


def _end_s(frame: VideoFrame, stream: VideoStream) -> float:
    """When a frame ends."""
    shown_s = frame.duration * stream.time_base if frame.duration and stream.time_base else 0
    return (frame.time or 0.0) + float(shown_s or 1 / (stream.average_rate or 1))


def _promised_s(file: InputContainer, stream: VideoStream) -> float:
    """Length of the pictures that a header without a number of frames tells; 0: it tells none.

    Matroska and WebM have it as a tag of each stream, "00:00:01.600000000", and for the whole file.
    """
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if tag:
        return 3600 * float(tag[1]) + 60 * float(tag[2]) + float(tag[3])
    return file.duration / av.time_base if file.duration and len(file.streams) == 1 else 0.0


def decode(array: np.ndarray, *, feature: VideoFeature, vocabulary: Vocabulary | None) -> bytes:
    """Frames to the bytes of an animated PNG, which every browser plays where a picture may be."""
    frames = np.asarray(array, dtype=np.uint8)
    pictures = [Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in frames]
    file = io.BytesIO()
    pictures[0].save(
        file,
        format="PNG",
        save_all=True,
        append_images=pictures[1:],
        duration=SHOWN_FRAME_MS,
        loop=0,
    )
    return file.getvalue()
