"""Moving digits: MP4 files in which a handwritten digit moves in one of eight directions.

Speed, size, start and the noise of the picture differ from clip to clip; the digit never leaves
the picture. Opposite directions have the same paths, so that no single frame tells the direction
but by where the path begins. Scans keep the split that they have in the corpus of digits.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from pipelines.corpora import whole_folder, write_lines
from pipelines.corpora.digits import draw, load_scans, partition

SIDE = 32  # pixels
DIGIT_SIDE = (13, 17)  # pixels, from .. to
NUM_FRAMES = 16
FRAMES_PER_S = 25
SPEED = (0.6, 1.0)  # pixels a frame along each axis, from .. to
NOISE = 8.0  # standard deviation, of 255 levels
BITS_PER_S = 400_000  # of a file: far more than such pictures need, so that digits stay sharp

# Columns and rows to the right and down in a frame at speed 1
DIRECTIONS: Mapping[str, tuple[int, int]] = {
    "right": (1, 0),
    "down right": (1, 1),
    "down": (0, 1),
    "down left": (-1, 1),
    "left": (-1, 0),
    "up left": (-1, -1),
    "up": (0, -1),
    "up right": (1, -1),
}
# The tasks share the clips; the one with fewer has the first of them
NUM_EXAMPLES: Mapping[str, Mapping[str, int]] = {
    "directions": {"train": 1_000, "validation": 150, "test": 300},
    "identities": {"train": 2_000, "validation": 150, "test": 300},
}


@dataclass(frozen=True, slots=True)
class Motion:
    """How a digit moves: its side in pixels, its first corner (column, row), its step a frame."""

    side: int
    start: tuple[float, float]
    step: tuple[float, float]

    def corner(self, frame: int) -> tuple[int, int]:
        """Column and row of the digit's corner in a frame, in whole pixels."""
        (left, top), (right, down) = self.start, self.step
        return round(left + frame * right), round(top + frame * down)


def make(folder: Path, *, seed: int) -> None:
    """Writes `<split>/{directions,identities}.jsonl` (video, direction, digit) and the clips."""
    scans_NYX, digits = load_scans()
    with whole_folder(folder) as part:
        for number, (split, members) in enumerate(sorted(partition(len(digits)).items())):
            rng = np.random.default_rng((seed, number))
            (part / split / "clips").mkdir(parents=True)
            rows = []
            for place in range(max(counts[split] for counts in NUM_EXAMPLES.values())):
                scan = int(rng.choice(members))
                direction = str(rng.choice(list(DIRECTIONS)))
                motion = draw_motion(rng, direction=direction)
                frames = draw_frames(scans_NYX[scan], motion=motion, rng=rng)
                name = f"clips/{place:05d}.mp4"
                (part / split / name).write_bytes(to_mp4(frames, frames_per_s=FRAMES_PER_S))
                digit = str(digits[scan])
                rows.append({"video": name, "direction": direction, "digit": digit, "scan": scan})
            for kind, counts in NUM_EXAMPLES.items():
                lines = map(json.dumps, rows[: counts[split]])
                write_lines(part / split / f"{kind}.jsonl", lines)


def draw_motion(rng: np.random.Generator, *, direction: str) -> Motion:
    """A path that stays in the picture; along an axis without motion it stands anywhere."""
    side = int(rng.integers(DIGIT_SIDE[0], DIGIT_SIDE[1] + 1))
    speed = float(rng.uniform(*SPEED))
    step_x, step_y = (axis * speed for axis in DIRECTIONS[direction])
    start_x, start_y = (
        float(rng.uniform(0, SIDE - side - abs(step) * (NUM_FRAMES - 1)))
        + max(0.0, -step * (NUM_FRAMES - 1))
        for step in (step_x, step_y)
    )
    return Motion(side, (start_x, start_y), (step_x, step_y))


def draw_frames(scan_YX: np.ndarray, *, motion: Motion, rng: np.random.Generator) -> np.ndarray:
    """The clip, uint8 (T, Y, X)."""
    drawn_YX = draw(scan_YX, side=motion.side)
    frames_TYX = rng.normal(0.0, NOISE, size=(NUM_FRAMES, SIDE, SIDE))
    for frame in range(NUM_FRAMES):
        left, top = motion.corner(frame)
        frames_TYX[frame, top : top + motion.side, left : left + motion.side] += drawn_YX
    return np.clip(frames_TYX.round(), 0, 255).astype(np.uint8)


def to_mp4(frames_TYX: np.ndarray, *, frames_per_s: int) -> bytes:
    """Grey frames, uint8 (T, Y, X), as an MPEG-4 file; the same frames give the same bytes."""
    file = io.BytesIO()
    bitexact = {"fflags": "bitexact"}  # else the encoder's version stands in the file
    with av.open(file, "w", format="mp4", options=bitexact) as container:
        stream = container.add_stream("mpeg4", rate=frames_per_s, options={"flags": "bitexact"})
        stream.height, stream.width = frames_TYX.shape[1:]
        stream.pix_fmt, stream.bit_rate = "yuv420p", BITS_PER_S
        stream.codec_context.thread_count = 1
        for levels_YX in frames_TYX:
            container.mux(stream.encode(to_frame(levels_YX)))
        container.mux(stream.encode(None))
    return file.getvalue()


def to_frame(levels_YX: np.ndarray) -> av.VideoFrame:
    """A grey picture in the colours of video: luma from 16 to 235, chroma 128.

    By hand, for the library's conversion of a small frame takes ten times as long.
    """
    rows, columns = levels_YX.shape
    planes = np.full((rows + rows // 2, columns), 128, dtype=np.uint8)
    planes[:rows] = np.round(16 + levels_YX * (219 / 255))
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")
