"""The categorical net: a class to a position, an encoded grid or sequence to logits over classes.

The head reads the encoder's output, so that a task of classes trains neither mixer nor decoder; or,
with `reads="decoded"`, one decoded position.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.grid import GridConvStep, Pair, mask_rows, max_pool, row_mask, stride_lengths
from mmtrain.layers.units import Slice


class Config(BaseModel):
    """Settings of the categorical net. `paper()` has the widths of the paper at D = 1024."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    TAKEN: ClassVar = ("classes",)

    classes: tuple[str, ...] | None = Field(
        default=None, description="Of inputs, by id; null: those of the tasks' inputs."
    )
    reads: Literal["encoded", "decoded"] = Field(
        default="encoded", description="The encoder's output, or one decoded position."
    )
    widths: tuple[float, float, float] = Field(
        default=(1.25, 2.0, 2.5),
        description="Channels after the skip and of the last two steps, over D; the default is "
        "tensor2tensor's.",
    )

    @classmethod
    def paper(cls) -> "Config":
        """Widths D, 1536 and 2048 at D = 1024."""
        return cls(widths=(1.0, 1.5, 2.0))


class Input(nn.Module):
    """Class ids (B, 1) to a position each: rows of a matrix times sqrt(D).

    The bottom of class labels in tensor2tensor v1.0.3; the paper has categories as outputs alone,
    the patent (WO2018213841A1) as inputs too.
    """

    dims: ClassVar[Literal[1, 2]] = 1

    def __init__(self, config: Config, *, model_dim: int, vocab_size: int) -> None:
        super().__init__()
        assert config.classes, "the net is built of a config that was fitted to its tasks"
        self.table = nn.Embedding(len(config.classes), model_dim)
        self.scale = math.sqrt(model_dim)
        nn.init.normal_(self.table.weight, std=model_dim**-0.5)

    def forward(self, ids_B1: Tensor, lengths_B: Tensor) -> Encoded:
        return Encoded(self.table(ids_B1) * self.scale, row_mask(lengths_B, ids_B1.shape[1]))


class Shape(BaseModel):
    """Kernel, stride and padding by the kind of input: tensor2tensor v1.0.3."""

    model_config = ConfigDict(frozen=True)

    kernel: Pair
    stride: Pair
    ends: Literal["same", "left"]

    SQUARE: ClassVar["Shape"]
    LINE: ClassVar["Shape"]


Shape.SQUARE = Shape(kernel=(3, 3), stride=(2, 2), ends="same")
Shape.LINE = Shape(kernel=(5, 1), stride=(4, 1), ends="left")


class ExitFlow(nn.Module):
    """Encoded positions to one vector, as the end of Xception does. MultiModel, Sec. 2.5.3.

    skip = ConvStep_s(x);   h3 = skip + MaxPool_s(ConvStep(ConvStep(x)))
    h5 = ConvStep(ConvStep(h3));   h6 = mean over positions of relu(h5)
    """

    def __init__(self, dim: int, widths: tuple[int, int, int], *, shape: Shape) -> None:
        super().__init__()
        kernel, stride, ends = shape.kernel, shape.stride, shape.ends
        first, second, third = widths
        self.skip = GridConvStep(dim, first, kernel=kernel, stride=stride, ends=ends)
        self.step1 = GridConvStep(dim, first, kernel=kernel, ends=ends)
        self.step2 = GridConvStep(first, first, kernel=kernel, ends=ends)
        self.step4 = GridConvStep(first, second, kernel=kernel, ends=ends)
        self.step5 = GridConvStep(second, third, kernel=kernel, ends=ends)
        self.shape = shape

    def forward(self, x_BYXC: Tensor, lengths_B: Tensor) -> Tensor:
        kernel, stride, ends = self.shape.kernel, self.shape.stride, self.shape.ends
        deep_BYXC = self.step2(self.step1(x_BYXC, lengths_B), lengths_B)
        pooled_BYXC = max_pool(deep_BYXC, lengths_B, kernel=kernel, stride=stride, ends=ends)
        x_BYXC = self.skip(x_BYXC, lengths_B) + pooled_BYXC
        lengths_B = stride_lengths(lengths_B, stride[0])
        x_BYXC = self.step5(self.step4(x_BYXC, lengths_B), lengths_B)
        return mean_over_positions(x_BYXC.relu(), lengths_B)


def mean_over_positions(x_BYXC: Tensor, lengths_B: Tensor) -> Tensor:
    """(B, C): the mean over all bins of the rows that are real."""
    positions_B1 = lengths_B.clamp(min=1)[:, None] * x_BYXC.shape[2]
    return mask_rows(x_BYXC, lengths_B).sum((1, 2)) / positions_B1


class Output(nn.Module):
    """A task's classes: (B, S, D) encoded, or (B, 1, D) decoded, to logits (B, V)."""

    def __init__(
        self,
        config: Config,
        *,
        model_dim: int,
        vocab_size: int,
        num_outputs: int | None,
        dims: Literal[1, 2],
    ) -> None:
        super().__init__()
        assert num_outputs is not None, "a label target needs its number of classes"
        self.reads: Literal["encoded", "decoded"] = config.reads
        widths = tuple(max(1, round(model_dim * width)) for width in config.widths)
        if self.reads == "encoded":
            shape = Shape.SQUARE if dims == 2 else Shape.LINE
            self.flow = ExitFlow(model_dim, (widths[0], widths[1], widths[2]), shape=shape)
        else:
            self.command = nn.Embedding(1, model_dim)
        self.project = nn.Linear(widths[2] if self.reads == "encoded" else model_dim, num_outputs)
        nn.init.orthogonal_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def start(
        self, targets_BT: Tensor, *, command_id: int | None, lengths_B: Tensor | None
    ) -> Encoded:
        """One position, the task's own command: a class has no earlier target to be fed."""
        slot_B1 = torch.zeros_like(targets_BT[:, :1], dtype=torch.long)
        return Encoded(self.command(slot_B1), torch.ones_like(slot_B1, dtype=torch.bool))

    def forward(self, encoded: Encoded) -> Tensor:
        if self.reads == "decoded":
            return self.project(encoded.values_BSD[:, 0])
        rows, columns = encoded.grid or (encoded.values_BSD.shape[1], 1)
        x_BYXC = encoded.values_BSD.unflatten(1, (rows, columns))
        lengths_B = encoded.mask_BS.unflatten(1, (rows, columns))[:, :, 0].sum(1)
        return self.project(self.flow(x_BYXC, lengths_B))

    def output_slices(self) -> tuple[Slice, ...]:
        """Where its scores lie in its weights."""
        return (Slice("project.weight", axis=0), Slice("project.bias", axis=0))
