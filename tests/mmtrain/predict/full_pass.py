"""The decoder's slow twin: each step is a full pass over all tokens so far."""

from typing import Any

import torch
from torch import Tensor

from mmtrain.predict.decoding import Stepper


class FullPass(Stepper):
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.tokens: list[Tensor] = []

    def next(self, last_B: Tensor) -> Tensor:
        self.tokens.append(last_B)
        shifted = self.head.resume(torch.stack(self.tokens, dim=1))
        return self.scores(self.body.decode(shifted, self.encoded))

    def select(self, rows_B: Tensor) -> None:
        super().select(rows_B)
        self.tokens = [tokens_B.index_select(0, rows_B) for tokens_B in self.tokens]
