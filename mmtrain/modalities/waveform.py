"""The waveform net: samples to positions, by a learned filter bank and residual blocks.

MultiModel, arXiv:1706.05137, Sec. 2.5.4, with one change: an ordinary convolution with bias comes
first. As worded there the first layer is a separable convolution on one channel; with the layer
norm behind it, its output is one pattern times a sign at every sample, and nothing is learned.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.entry import EntryNet, Stage

Output = None


class Config(BaseModel):
    """Settings of the waveform net. The last stage should leave the width null: it makes D."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    AGREED: ClassVar = ("sample_rate_hz",)

    stems: tuple[Stage, ...] = Field(
        default=(Stage(width=64, kernel=(65, 1), stride=(16, 1)),),
        min_length=1,
        description="Ordinary convolutions; the first is a bank of filters over samples.",
    )
    blocks: tuple[Stage, ...] = Field(
        default=(
            Stage(width=64, kernel=(3, 1), stride=(4, 1)),
            Stage(kernel=(3, 1), stride=(4, 1)),
        ),
        description="Residual blocks.",
    )
    units: dict[str, int] = Field(
        default={},
        description="Units of a group that has fewer than all: 'flow.blocks.0.step1.channels'.",
    )

    @classmethod
    def paper(cls) -> "Config":
        """Eight blocks of 2 to 256 channels and one to D, each halving time: samples / 2^9.

        The first convolution has 16 channels, where the paper has none.
        """
        blocks = [Stage(width=2**i, kernel=(3, 1), stride=(2, 1)) for i in range(1, 9)]
        last = Stage(kernel=(3, 1), stride=(2, 1))
        return cls(stems=(Stage(width=16, kernel=(9, 1)),), blocks=(*blocks, last))


class Input(EntryNet):
    """Samples (B, samples), of any loudness, to positions (B, S, D)."""

    dims: ClassVar[Literal[1, 2]] = 1

    def __init__(self, config: Config, *, model_dim: int, vocab_size: int) -> None:
        super().__init__(
            config,
            channels=1,
            model_dim=model_dim,
            relu_shortcuts="all_but_last",
        )

    def forward(self, samples_BY: Tensor, lengths_B: Tensor) -> Encoded:
        encoded = self.flow(samples_BY[:, :, None, None], lengths_B)
        return Encoded(encoded.values_BSD, encoded.mask_BS)
