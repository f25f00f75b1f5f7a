import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipelines.errors import BadExampleError
from pipelines.modalities import video
from pipelines.modalities.video import VideoFeature, kept_frames

SIZE = 32
FEATURE = VideoFeature(height=SIZE, width=SIZE, channels=1, num_frames=8, min_frames=4)


def frames_of(count: int, *, noise: bool = False) -> np.ndarray:
    """Frame i is of grey 16 i, or noise: uint8 (T, Y, X, 3)."""
    if noise:
        return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return np.stack([np.full((SIZE, SIZE, 3), 16 * i, np.uint8) for i in range(count)])


def to_video(
    frames: np.ndarray,
    *,
    folder: Path,
    suffix: str = ".mp4",
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> bytes:
    path = folder / f"clip{suffix}"
    with av.open(str(path), "w", options=options or {}) as file:
        stream = file.add_stream(codec, rate=Fraction(10))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = pixels, 4_000_000
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path.read_bytes()


def encode(data: object, feature: VideoFeature = FEATURE) -> np.ndarray:
    return video.encode(data, feature=feature, vocabulary=None)


def shades(clip: np.ndarray) -> list[int]:
    """The grey of each frame in steps of 16."""
    return [round(float(frame.mean()) / 16) for frame in clip]


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        (".mp4", "mpeg4", "yuv420p"),
        (".mp4", "libx264", "yuv420p"),
        (".avi", "mpeg4", "yuv420p"),
        (".webm", "libvpx-vp9", "yuv420p"),
        (".gif", "gif", "rgb8"),
    ],
)
def test_every_usual_container_gives_its_frames_in_order(tmp_path, suffix, codec, pixels):
    data = to_video(frames_of(8), folder=tmp_path, suffix=suffix, codec=codec, pixels=pixels)
    clip = encode(data)
    assert (clip.shape, clip.dtype, clip.ndim) == ((8, SIZE, SIZE, 1), np.uint8, FEATURE.rank)
    assert shades(clip) == list(range(8))


def test_frames_are_resized_and_coloured_as_pictures_are(tmp_path):
    frames = np.zeros((4, 48, 16, 3), np.uint8)
    frames[..., 0] = 255
    colour = FEATURE.model_copy(update={"channels": 3, "num_frames": 4})
    clip = encode(to_video(frames, folder=tmp_path), colour)
    assert clip.shape == (4, SIZE, SIZE, 3)
    assert np.abs(clip.mean(axis=(0, 1, 2)) - (255, 0, 0)).max() < 6
    grey = encode(to_video(frames, folder=tmp_path), FEATURE)
    assert abs(grey.mean() - 76) < 4  # 0.299 * 255


def test_window_is_the_middle_or_the_start_at_the_step():
    centre = FEATURE.model_copy(update={"num_frames": 4, "frame_step": 2})
    start = centre.model_copy(update={"window": "start"})
    assert kept_frames(7, feature=centre) == [0, 2, 4, 6]
    assert kept_frames(12, feature=centre) == [2, 4, 6, 8]
    assert kept_frames(12, feature=start) == [0, 2, 4, 6]


def test_short_clip_holds_its_last_frame_and_too_short_is_refused(tmp_path):
    assert shades(encode(to_video(frames_of(5), folder=tmp_path))) == [0, 1, 2, 3, 4, 4, 4, 4]
    message = "clip too short: 3 frames, of which 3 are kept at a step of 1; at least 4"
    with pytest.raises(BadExampleError, match=message):
        encode(to_video(frames_of(3), folder=tmp_path))
    stepped = FEATURE.model_copy(update={"frame_step": 3})
    with pytest.raises(BadExampleError, match="clip too short: 9 frames, of which 3 are kept"):
        kept_frames(9, feature=stepped)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("index", ["first", "last"])
def test_every_cut_inside_the_frames_is_refused(tmp_path, codec, index):
    options = {"movflags": "faststart"} if index == "first" else {}
    data = to_video(frames_of(16, noise=True), folder=tmp_path, codec=codec, options=options)
    feature = FEATURE.model_copy(update={"window": "start"})  # its window ends before the cut
    assert len(encode(data, feature)) == 8
    for share in (0.02, 0.3, 0.6, 0.75, 0.9):
        with pytest.raises(BadExampleError, match=r"(unreadable|truncated|damaged) video"):
            encode(data[: int(share * len(data))], feature)


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        (".avi", "mpeg4", "yuv420p"),
        (".mkv", "libx264", "yuv420p"),
        (".webm", "libvpx-vp9", "yuv420p"),
        (".gif", "gif", "rgb8"),
    ],
)
def test_cuts_of_containers_without_an_index_are_refused(tmp_path, suffix, codec, pixels):
    frames = frames_of(16, noise=True)
    data = to_video(frames, folder=tmp_path, suffix=suffix, codec=codec, pixels=pixels)
    assert len(encode(data)) == 8
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(BadExampleError, match=r"(unreadable|truncated) video"):
            encode(data[: int(share * len(data))])


def test_random_damage_is_refused_or_read_and_never_anything_else(tmp_path):
    rng, refused = np.random.default_rng(0), 0
    for codec in ("mpeg4", "libx264"):
        data = to_video(frames_of(8, noise=True), folder=tmp_path, codec=codec)
        for _ in range(40):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[rng.integers(len(damaged), size=20)] = rng.integers(256, size=20)
            try:
                assert encode(damaged.tobytes()).shape == (8, SIZE, SIZE, 1)
            except BadExampleError:
                refused += 1
    assert refused > 60


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unreadable video"),
        (b"hello", "unreadable video"),
        (7, "wrong type: int, not the bytes of a video"),
    ],
)
def test_what_is_no_video_is_refused_with_the_reason(data: object, reason: str):
    with pytest.raises(BadExampleError, match=reason):
        encode(data)


def test_sound_is_no_video():
    from pipelines.modalities.audio import to_wav

    sound = to_wav(np.zeros(800), rate_hz=8_000)
    with pytest.raises(BadExampleError, match="not a video: the file holds no pictures"):
        encode(sound)


def test_length_and_size_are_bounded(tmp_path):
    data = to_video(frames_of(8), folder=tmp_path)
    with pytest.raises(BadExampleError, match="video too long: over 7 frames"):
        encode(data, FEATURE.model_copy(update={"max_frames": 7}))
    with pytest.raises(BadExampleError, match="frames too large: 32 x 32 pixels, at most 1023"):
        encode(data, FEATURE.model_copy(update={"max_pixels": 1023}))


@pytest.mark.parametrize("channels", [1, 3])
def test_decoded_is_an_animated_png_that_comes_back_to_the_bit(channels):
    feature = FEATURE.model_copy(update={"channels": channels})
    clip = frames_of(8, noise=True)[..., :channels]
    data = video.decode(clip, feature=feature, vocabulary=None)
    picture = Image.open(io.BytesIO(data))
    assert data.startswith(b"\x89PNG")
    assert (picture.n_frames, picture.is_animated) == (8, True)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(encode(data, feature), clip)


def test_fewest_frames_are_not_over_all():
    with pytest.raises(ValueError, match="min_frames 9 is over num_frames 8"):
        VideoFeature(height=2, width=2, channels=1, num_frames=8, min_frames=9)
