"""The video net of a vision transformer: clips to tubelets, a class token before them.

A tubelet is a block of a few frames, rows and columns: ViViT, arXiv:2103.15691, Sec. 3.2. The
tubelets of a clip are one sequence, or those of each moment are a sequence of their own, as if it
were a picture, and the body's outputs are averaged over the moments.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.patches import PatchEmbedding, Tokens, check_size, grid_of

Output = None


class Config(BaseModel):
    """Settings of the video net. The defaults are those of ViViT-B/16x4 on 32 frames."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_frames: int = Field(default=32, ge=1, description="Frames of a clip.")
    height: int = Field(default=224, ge=1, description="Rows of a frame, in pixels.")
    width: int = Field(default=224, ge=1, description="Columns of a frame, in pixels.")
    channels: int = Field(default=3, ge=1, description="Of the frames: 1 grey, 3 colour.")
    patch: tuple[int, int, int] = Field(
        default=(4, 16, 16), description="Frames, rows and columns of a tubelet."
    )
    sequence: Literal["clip", "frame"] = Field(
        default="clip",
        description="What attends to each other: all of a clip, or one moment's tubelets alone.",
    )
    drop_prob: float = Field(default=0.0, ge=0, lt=1, description="Dropout of the tokens.")


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
        self.size = (config.num_frames, config.height, config.width, config.channels)
        axes = ("frames", "rows", "columns")
        moments, rows, columns = grid_of(self.size[:3], patch=config.patch, axes=axes)
        self.moments = moments if config.sequence == "frame" else 1
        self.grid = (rows if config.sequence == "frame" else moments * rows, columns)
        self.patch = config.patch[1:]
        self.embed = PatchEmbedding(config.channels, model_dim, patch=config.patch)
        self.tokens = Tokens(self.grid[0] * columns, model_dim, drop_prob=config.drop_prob)

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
