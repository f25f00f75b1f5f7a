"""The image net: pixels to positions, row by row, by the entry flow of Xception.

MultiModel, arXiv:1706.05137, Sec. 2.5.2. `Config()` is for pictures of 20 to 100 pixels a side,
`Config.paper()` for 299 x 299 (361 positions), `Config.tiny()` for smaller ones.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.entry import EntryNet, Stage
from mmtrain.layers.patches import known

Output = None


class Config(BaseModel):
    """Settings of the image net. The last stage should leave the width null: it makes D."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    TAKEN: ClassVar = ("channels",)

    channels: int | None = Field(
        default=None, ge=1, description="Of the pictures; null: as the tasks' inputs have."
    )
    stems: tuple[Stage, ...] = Field(
        default=(Stage(width=32, stride=(2, 2)),),
        min_length=1,
        description="Ordinary convolutions.",
    )
    blocks: tuple[Stage, ...] = Field(
        default=(Stage(width=64, stride=(2, 2)), Stage(stride=(2, 2))),
        description="Residual blocks.",
    )
    units: dict[str, int] = Field(
        default={},
        description="Units of a group that has fewer than all: 'flow.blocks.0.step1.channels'.",
    )

    @classmethod
    def paper(cls) -> "Config":
        """299 x 299 x 3 in four halvings to 19 x 19 positions."""
        halve = (2, 2)
        return cls(
            channels=3,
            stems=(Stage(width=32, stride=halve), Stage(width=64)),
            blocks=(
                Stage(width=128, stride=halve),
                Stage(width=256, stride=halve),
                Stage(stride=halve),
            ),
        )

    @classmethod
    def tiny(cls, *, channels: int = 1, stride: int = 1) -> "Config":
        """One 3x3 convolution to D, as released code has for pictures of CIFAR's size."""
        return cls(channels=channels, stems=(Stage(stride=(stride, stride)),), blocks=())


class Input(EntryNet):
    """Pixels (B, Y, X, C) of any number type and range to positions (B, Y' * X', D).

    Each picture is standardised. Pictures of a batch have one size, so the lengths are not read.
    """

    dims: ClassVar[Literal[1, 2]] = 2

    def __init__(self, config: Config, *, model_dim: int, vocab_size: int) -> None:
        (channels,) = known(config.channels)
        super().__init__(
            config,
            channels=channels,
            model_dim=model_dim,
            relu_shortcuts="first",
        )

    def forward(self, pixels_BYXC: Tensor, lengths_B: Tensor) -> Encoded:
        return self.flow(pixels_BYXC, None)
