"""The image net of a vision transformer: pixels to patches, a class token before them.

Dosovitskiy et al., arXiv:2010.11929, Sec. 3.1. Pictures have one size, set here; learned positions
are resized when weights are loaded and at no other time.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.patches import PatchEmbedding, Tokens, check_size, grid_of, known

Output = None


class Config(BaseModel):
    """Settings of the image net: ViT-B/16's patch, sizes as the tasks' pictures have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    TAKEN: ClassVar = ("height", "width", "channels")

    height: int | None = Field(default=None, ge=1, description="Rows of a picture, in pixels.")
    width: int | None = Field(default=None, ge=1, description="Columns of a picture, in pixels.")
    channels: int | None = Field(default=None, ge=1, description="Of the pictures: 1 or 3.")
    patch: tuple[int, int] = Field(
        default=(16, 16), description="Rows and columns of a patch, in pixels."
    )
    drop_prob: float = Field(default=0.0, ge=0, lt=1, description="Dropout of the tokens.")

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns of patches.

        Raises:
            InputSizeError: patches do not divide the size.
        """
        size = known(self.height, self.width)
        return grid_of(size, patch=self.patch, axes=("rows", "columns"))


class Input(nn.Module):
    """Pixels (B, Y, X, C) in 0..255, of any number type, to (B, 1 + Y' * X', D).

    Pixels are scaled to -1..1.

    Raises:
        InputSizeError: patches do not divide the size; or, when called, pictures of another size.
    """

    dims: ClassVar[Literal[1, 2]] = 2

    def __init__(self, config: Config, *, model_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.size = known(config.height, config.width, config.channels)
        rows, columns = config.grid
        self.grid, self.patch = (rows, columns), config.patch
        self.embed = PatchEmbedding(self.size[-1], model_dim, patch=config.patch)
        self.tokens = Tokens(rows * columns, model_dim, drop_prob=config.drop_prob)

    def forward(self, pixels_BYXC: Tensor, lengths_B: Tensor) -> Encoded:
        check_size(pixels_BYXC, self.size, net="image_patches")
        values_BSD = self.tokens(self.embed(pixels_BYXC.float() / 127.5 - 1))
        mask_BS = values_BSD.new_ones(values_BSD.shape[:2]).bool()
        return Encoded(values_BSD, mask_BS, self.grid, padding="none", patch=self.patch)
