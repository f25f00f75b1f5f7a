"""The language net: token ids to positions, positions to logits over the joint vocabulary.

All text tasks share it. Its three matrices (input, target and output) are separate, as in the code
of MultiModel's authors; command tokens are ids of the same vocabulary.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.grid import row_mask

PADDING_ID = 0


class Config(BaseModel):
    """Settings of the language net."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drop_prob: float = Field(default=0.0, ge=0, lt=1, description="Dropout of embedded tokens.")


class TokenEmbedding(nn.Module):
    """Rows of a matrix times sqrt(D); padding is the zero vector. MultiModel, Sec. 2.5.1."""

    def __init__(self, vocab_size: int, dim: int, *, drop_prob: float) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, dim, padding_idx=PADDING_ID)
        self.dropout = nn.Dropout(drop_prob)
        self.scale = math.sqrt(dim)
        nn.init.normal_(self.table.weight, std=dim**-0.5)
        self.table.weight.data[PADDING_ID] = 0.0

    def forward(self, tokens_BL: Tensor) -> Tensor:
        return self.dropout(self.table(tokens_BL) * self.scale)


class Input(nn.Module):
    """Token ids (B, S), padded with 0, to positions."""

    dims: ClassVar[Literal[1, 2]] = 1

    def __init__(self, config: Config, *, model_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.embed = TokenEmbedding(vocab_size, model_dim, drop_prob=config.drop_prob)

    def forward(self, tokens_BS: Tensor, lengths_B: Tensor) -> Encoded:
        return Encoded(self.embed(tokens_BS), row_mask(lengths_B, tokens_BS.shape[1]))


class Output(nn.Module):
    """Decoded positions (B, T, D) to logits (B, T, V); also embeds the targets it will be fed."""

    reads: ClassVar[Literal["encoded", "decoded"]] = "decoded"

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
        self.embed = TokenEmbedding(vocab_size, model_dim, drop_prob=config.drop_prob)
        self.project = nn.Linear(model_dim, vocab_size, bias=False)
        nn.init.orthogonal_(self.project.weight)

    def start(
        self, targets_BT: Tensor, *, command_id: int | None, lengths_B: Tensor | None
    ) -> Encoded:
        """Targets shifted right by one: the command in slot 0, the last target left out.

        Position t is real where target t is, for it predicts that one.
        """
        assert command_id is not None, "a text target needs a command token"
        shifted_BT = targets_BT.roll(1, dims=1)
        shifted_BT[:, 0] = command_id
        mask_BT = targets_BT != PADDING_ID
        if lengths_B is not None:
            mask_BT = row_mask(lengths_B, targets_BT.shape[1])
        return Encoded(self.embed(shifted_BT), mask_BT)

    def resume(self, tokens_B1: Tensor) -> Encoded:
        """One more position: the token just decoded, or the command at the start."""
        return Encoded(self.embed(tokens_B1), torch.ones_like(tokens_B1, dtype=torch.bool))

    def forward(self, decoded: Encoded) -> Tensor:
        return self.project(decoded.values_BSD)
