"""The head of per-element classes: each patch's position gives the scores of its own elements.

Segmentation: a score for each class at each pixel, or at each patch.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.patches import InputSizeError, lecun_normal_
from pipelines.modalities.mask import MaskFeature

Input = None


class Config(BaseModel):
    """Settings of the head of per-element classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: Literal["pixel", "patch"] = Field(
        default="pixel", description="Whether each pixel has scores, or each patch has once."
    )
    patch: tuple[int, int] | None = Field(
        default=None, description="Rows and columns of a patch; null: as the input net has."
    )
    init: Literal["zeros", "lecun_normal"] = Field(
        default="zeros", description="Weights at the start; the bias is zero."
    )

    @property
    def cell(self) -> tuple[int, int]:
        """Rows and columns of scores that a position gives."""
        assert self.patch is not None, "the head is built of a config that was fitted to its tasks"
        return self.patch if self.scores == "pixel" else (1, 1)


def fill_head(config: Config, *, stem: BaseModel) -> Config:
    """The config with the patch of the input net's config, where it has none of its own."""
    patch = getattr(stem, "patch", None)
    if config.patch is not None or patch is None:
        return config
    return config.model_copy(update={"patch": patch[-2:]})


def check_head(config: Config, *, stem: BaseModel, net: str, targets: MaskFeature) -> None:
    """Refuses a target that the positions of an input net have not the scores for.

    Args:
        config: with its patch.
        stem: config of the input net.
        net: its name.
        targets: the task's.

    Raises:
        InputSizeError: the input has no patches, or others, or the target is of another size.
    """
    patch = getattr(stem, "patch", None)
    if patch is None:
        raise InputSizeError(
            f"mask targets need positions of patches, net {net!r} has none; use image inputs"
        )
    if config.patch != patch[-2:]:
        raise InputSizeError(
            f"model.nets.elements.patch is {config.patch}, the patches of net {net!r} are "
            f"{patch[-2:]}; leave it out: --set model.nets.elements.patch=null"
        )
    rows, columns = (n * cell for n, cell in zip(stem.grid, config.cell, strict=True))  # type: ignore[attr-defined]  # nets with patches have one
    if (targets.height, targets.width) != (rows, columns):
        raise InputSizeError(
            f"mask targets are of {targets.height} x {targets.width}, net 'elements' gives "
            f"{rows} x {columns} on net {net!r}; set targets.height={rows} and "
            f"targets.width={columns}, or the inputs to the targets' size"
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
        self.patch, self.cell = config.patch, config.cell
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
