"""The video net of a vision transformer: clips to tubelets, a class token before them.

A tubelet is a block of a few frames, rows and columns: ViViT, arXiv:2103.15691, Sec. 3.2. The
tubelets of a clip are one sequence, or those of each moment are a sequence of their own, as if it
were a picture, and the body's outputs are averaged over the moments.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.patches import PatchEmbedding, Tokens, check_size, grid_of, known

Output = None


class Config(BaseModel):
    """Settings of the video net: ViViT-B/16x4's tubelet, sizes as the tasks' clips have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    TAKEN: ClassVar = ("num_frames", "height", "width", "channels")

    num_frames: int | None = Field(default=None, ge=1, description="Frames of a clip.")
    height: int | None = Field(default=None, ge=1, description="Rows of a frame, in pixels.")
    width: int | None = Field(default=None, ge=1, description="Columns of a frame, in pixels.")
    channels: int | None = Field(default=None, ge=1, description="Of the frames: 1 or 3.")
    patch: tuple[int, int, int] = Field(
        default=(4, 16, 16), description="Frames, rows and columns of a tubelet."
    )
    sequence: Literal["clip", "frame"] = Field(
        default="clip",
        description="What attends to each other: all of a clip, or one moment's tubelets alone.",
    )
    drop_prob: float = Field(default=0.0, ge=0, lt=1, description="Dropout of the tokens.")

    @property
    def moments(self) -> int:
        """Sequences of a clip, which the body's outputs are averaged over."""
        return known(self.num_frames)[0] // self.patch[0] if self.sequence == "frame" else 1

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns of the positions of a sequence; a clip's moments lie below each other.

        Raises:
            InputSizeError: tubelets do not divide the size, or a clip is shorter than one.
        """
        size = known(self.num_frames, self.height, self.width)
        moments, rows, columns = grid_of(size, patch=self.patch, axes=("frames", "rows", "columns"))
        return (rows if self.sequence == "frame" else moments * rows, columns)


class Input(nn.Module):
    """Pixels (B, T, Y, X, C) in 0..255, of any number type, scaled to -1..1.

    Of a clip: (B, 1 + T' * Y' * X', D), its grid (T' * Y', X'). Frame by frame: (B * T',
    1 + Y' * X', D), where all frames have the same positions.

    Raises:
        InputSizeError: tubelets do not divide the size, or a clip is shorter than one; or, when
            called, clips of another size.
    """

    dims: ClassVar[Literal[1, 2]] = 2

    def __init__(self, config: Config, *, model_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.size = known(config.num_frames, config.height, config.width, config.channels)
        rows, columns = config.grid
        self.grid, self.moments, self.patch = (rows, columns), config.moments, config.patch[1:]
        self.embed = PatchEmbedding(self.size[-1], model_dim, patch=config.patch)
        self.tokens = Tokens(rows * columns, model_dim, drop_prob=config.drop_prob)

    def forward(self, pixels_BTYXC: Tensor, lengths_B: Tensor) -> Encoded:
        check_size(pixels_BTYXC, self.size, net="video_tubelets")
        patches_BSD = self.embed(pixels_BTYXC.float() / 127.5 - 1)
        patches_BSD = patches_BSD.unflatten(1, (self.moments, -1)).flatten(0, 1)
        values_BSD = self.tokens(patches_BSD)
        mask_BS = values_BSD.new_ones(values_BSD.shape[:2]).bool()
        return Encoded(
            values_BSD,
            mask_BS,
            self.grid,
            padding="none",
            patch=self.patch,
            frames=self.moments,
        )
