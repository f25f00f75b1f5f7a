"""A trained vision transformer in one form, wherever it was read from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pipelines.errors import MMTrainError

VIT_BLOCK = tuple(
    f"{part}.{kind}"
    for part in (
        *("norm1", "attention.query", "attention.key", "attention.value", "attention.out"),
        *("norm2", "mlp.w_in", "mlp.w_out"),
    )
    for kind in ("weight", "bias")
)


class InitError(MMTrainError):
    """Weights to start from cannot be read, or do not fit the recipe's model."""


@dataclass(frozen=True, slots=True)
class Patches:
    """How a transformer takes a grid: by a kernel for each patch, with learned positions.

    Args:
        kernel_DCTYX: of a patch; T = 1 where there is no time.
        bias_D: its bias.
        positions_TYXD: of the grid of patches, the class token's apart.
    """

    kernel_DCTYX: Tensor
    bias_D: Tensor
    positions_TYXD: Tensor


@dataclass(frozen=True, slots=True)
class Vit:
    """One transformer's weights, fp32. None: there is none, or the file does not say.

    Args:
        patches: of a grid.
        class_token_D: the class token.
        class_position_D: its own row of the position table.
        blocks: tensors by `VIT_BLOCK`, or as the block has them; first block first.
        norm: weight and bias of the norm after the last block.
        num_heads: attention heads.
        layer_norm_eps: epsilon of all norms.
        gelu: form of the activation, "erf" or "tanh".
    """

    patches: Patches | None
    class_token_D: Tensor
    class_position_D: Tensor
    blocks: tuple[Mapping[str, Tensor], ...]
    norm: Mapping[str, Tensor]
    num_heads: int | None = None
    layer_norm_eps: float | None = None
    gelu: str | None = None


def some(names: Iterable[str]) -> str:
    """The first names in order, and how many more there are."""
    first = sorted(names)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")
