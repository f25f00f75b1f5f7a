"""The head of per-element classes: each patch's position gives the scores of its own elements.

Segmentation: a score for each class at each pixel, or at each patch.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.patches import InputSizeError, lecun_normal_

Input = None


class Config(BaseModel):
    """Settings of the head of per-element classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: Literal["pixel", "patch"] = Field(
        default="pixel", description="Whether each pixel has scores, or each patch has once."
    )
    patch: tuple[int, int] = Field(
        default=(16, 16), description="Rows and columns of the input net's patches, in pixels."
    )
    init: Literal["zeros", "lecun_normal"] = Field(
        default="zeros", description="Weights at the start; the bias is zero."
    )


class Output(nn.Module):
    """(B, 1 + Y' * X', D) encoded to logits (B, Y, X, V).

    Raises:
        InputSizeError: when called with a sequence, or with patches of another size.
    """

    reads: ClassVar[Literal["encoded", "decoded"]] = "encoded"

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
        assert num_outputs is not None, "per-element classes need their number"
        self.patch = config.patch
        self.cell = config.patch if config.scores == "pixel" else (1, 1)
        self.project = nn.Linear(model_dim, self.cell[0] * self.cell[1] * num_outputs)
        nn.init.zeros_(self.project.bias)
        if config.init == "zeros":
            nn.init.zeros_(self.project.weight)
        else:
            lecun_normal_(self.project.weight)

    def forward(self, encoded: Encoded) -> Tensor:
        if encoded.grid is None or encoded.patch != self.patch:
            raise InputSizeError(
                f"model.nets.elements.patch is {self.patch}, the input net's patches are "
                f"{encoded.patch}; set it to theirs (a text has none)"
            )
        scores_BSW = self.project(encoded.values_BSD[:, 1:])
        parts = scores_BSW.unflatten(1, encoded.grid).unflatten(-1, (*self.cell, -1))
        return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)
