"""A user's own file: a modality with its net, a format of corpora, an augmentation, a schedule."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.grid import row_mask
from pipelines.augment import Looks
from pipelines.errors import BadExampleError
from pipelines.file_formats import FileFormat
from pipelines.modalities import Feature
from pipelines.readers import Format, Piece, RawRow
from pipelines.schedule import ScheduleConfig, ScheduleKind

MARK = b"CNTR"


class ContourFeature(Feature):
    """Heights along a line, float32 (L, 1)."""

    dtype: ClassVar[str] = "float32"
    formats: ClassVar[tuple[FileFormat, ...]] = (FileFormat("contour", MARK),)
    bounds: ClassVar[dict[str, str]] = {"max_points": "max_samples"}

    modality: str = __file__
    max_points: int = 64

    @property
    def rank(self) -> int:
        return 2

    @property
    def longest_shape(self) -> tuple[int, ...]:
        return (self.max_points, 1)

    def example(self) -> bytes:
        return to_file([0.0, 1.0])


FEATURE = ContourFeature


def to_file(heights: Sequence[float]) -> bytes:
    return MARK + np.array(heights, "<f4").tobytes()


def encode(value: object, *, feature: ContourFeature, vocabulary: object) -> np.ndarray:
    if not isinstance(value, bytes) or not value.startswith(MARK):
        raise BadExampleError("not a contour")
    heights = np.frombuffer(value[len(MARK) :], "<f4")
    if len(heights) > feature.max_points:
        raise BadExampleError(f"contour too long: {len(heights)} points")
    return heights[:, None].astype(np.float32)


def decode(array: np.ndarray, *, feature: ContourFeature, vocabulary: object) -> str:
    return " ".join(f"{height:.1f}" for height in array[:, 0])


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float = 1.0


class Input(nn.Module):
    dims: ClassVar[int] = 1

    def __init__(self, config: Config, *, model_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.scale, self.project = config.scale, nn.Linear(1, model_dim)

    def forward(self, heights_BS1: Tensor, lengths_B: Tensor) -> Encoded:
        values_BSD = self.project(heights_BS1 * self.scale)
        return Encoded(torch.relu(values_BSD), row_mask(lengths_B, heights_BS1.shape[1]))


Output = None


def read(piece: Piece) -> Iterator[RawRow]:
    """The classes of a contour are the words of its file's name."""
    for file in piece.files:
        word = Path(file).stem.split("-")[int(piece.source.options["word"])]
        yield RawRow((Path(piece.root) / file).read_bytes(), word, file)


CONTOURS = Format((".cntr",), read, by_line=False)


class Tilt(Looks):
    inputs: ClassVar[tuple[str, ...]] = (__file__,)

    height: float = 0.1

    def changed(self, array: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
        return array + np.float32(rng.uniform(-self.height, self.height))


def lay_out_pairs(config: ScheduleConfig, *, num_steps: int, **_: object) -> np.ndarray:
    """Tasks 1 and 2, 2 and 3, .., T and 1."""
    firsts = np.arange(num_steps) % len(config.rates)
    return np.stack([firsts, (firsts + 1) % len(config.rates)], axis=1).astype(np.int16)


PAIRS = ScheduleKind(lay_out_pairs, tasks_a_step=2)
