"""The image net of a convolutional body: standardised pixels, each a position of its grid.

It has no weights: the body's first convolution sees the picture.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.grid import standardise

Output = None


class Config(BaseModel):
    """The net has no settings; channels are the body's."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(nn.Module):
    """Pixels (B, Y, X, C) of any number type and range to positions (B, Y * X, C).

    Each picture is standardised. Pictures of a batch have one size, so the lengths are not read.
    """

    dims: ClassVar[Literal[1, 2]] = 2

    def __init__(self, config: Config, *, model_dim: int, vocab_size: int) -> None:
        super().__init__()

    def forward(self, pixels_BYXC: Tensor, lengths_B: Tensor) -> Encoded:
        rows, columns = pixels_BYXC.shape[1:3]
        values_BSC = standardise(pixels_BYXC.float(), None).flatten(1, 2)
        mask_BS = values_BSC.new_ones(values_BSC.shape[:2]).bool()
        return Encoded(values_BSC, mask_BS, (rows, columns), padding="none")
