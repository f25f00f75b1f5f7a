"""The spectral net: log-mel frames to positions, frame by frame, by residual blocks.

MultiModel, arXiv:1706.05137, Sec. 2.5.4. `Config.paper()` strides along time alone and keeps every
bin, which makes 2^9 frames one row of positions; `Config()` strides both, for clips of seconds.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.entry import EntryNet, Stage

Output = None


class Config(BaseModel):
    """Settings of the spectral net. The last stage should leave the width null: it makes D."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    AGREED: ClassVar = ("sample_rate_hz", "num_bins", "frame_ms", "hop_ms")

    stems: tuple[Stage, ...] = Field(
        default=(Stage(width=16, stride=(2, 2)),),
        min_length=1,
        description="Ordinary convolutions.",
    )
    blocks: tuple[Stage, ...] = Field(
        default=(Stage(width=48, stride=(2, 2)), Stage(stride=(2, 2))),
        description="Residual blocks.",
    )
    units: dict[str, int] = Field(
        default={},
        description="Units of a group that has fewer than all: 'flow.blocks.0.step1.channels'.",
    )

    @classmethod
    def paper(cls) -> "Config":
        """Eight blocks of 2 to 256 channels and one to D, each halving time: frames / 2^9.

        An ordinary convolution stands before them: see `GridConv` for why.
        """
        blocks = [Stage(width=2**place, stride=(2, 1)) for place in range(1, 9)]
        return cls(stems=(Stage(width=2),), blocks=(*blocks, Stage(stride=(2, 1))))


class Input(EntryNet):
    """Log-mel frames (B, frames, bins) to positions (B, frames' * bins', D)."""

    dims: ClassVar[Literal[1, 2]] = 2

    def __init__(self, config: Config, *, model_dim: int, vocab_size: int) -> None:
        super().__init__(
            config,
            channels=1,
            model_dim=model_dim,
            relu_shortcuts="all_but_last",
        )

    def forward(self, frames_BYX: Tensor, lengths_B: Tensor) -> Encoded:
        return self.flow(frames_BYX.unsqueeze(-1), lengths_B)
