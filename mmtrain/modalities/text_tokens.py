"""The text net of a vision transformer: token ids to positions, a class token before them."""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.grid import row_mask
from mmtrain.layers.patches import POSITION_DEVIATION, InputSizeError, Tokens, known

Output = None


class Config(BaseModel):
    """Settings of the text net."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    AT_LEAST: ClassVar = {"max_tokens": 64}

    max_tokens: int | None = Field(
        default=None, ge=1, description="Longest text; null: the tasks' longest, 64 at least."
    )
    drop_prob: float = Field(default=0.0, ge=0, lt=1, description="Dropout of the tokens.")


class Input(nn.Module):
    """Token ids (B, S), padded with 0, to (B, 1 + S, D).

    Raises:
        InputSizeError: when called with more tokens than there are positions.
    """

    dims: ClassVar[Literal[1, 2]] = 1

    def __init__(self, config: Config, *, model_dim: int, vocab_size: int) -> None:
        super().__init__()
        (self.max_tokens,) = known(config.max_tokens)
        self.table = nn.Embedding(vocab_size, model_dim)
        self.tokens = Tokens(self.max_tokens, model_dim, drop_prob=config.drop_prob)
        nn.init.normal_(self.table.weight, std=POSITION_DEVIATION)

    def forward(self, tokens_BS: Tensor, lengths_B: Tensor) -> Encoded:
        length = tokens_BS.shape[1]
        if length > self.max_tokens:
            raise InputSizeError(
                f"a text of {length} tokens is longer than model.nets.text_tokens.max_tokens="
                f"{self.max_tokens}; raise it, or lower the task's inputs.max_tokens"
            )
        mask_BS = row_mask(lengths_B + 1, length + 1)
        return Encoded(self.tokens(self.table(tokens_BS)), mask_BS)
