"""The model of many tasks: head(body(stem(inputs))), for every family.

`MultiTaskModel` owns stems (one for each modality net), a body and heads, and the only `forward`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class TaskSpec(BaseModel):
    """What the model must know of a task; `recipe.py` derives it from the pipelines' `Task`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    input_net: str = Field(description="Stem: module of mmtrain/modalities, e.g. 'spectral'.")
    output_net: str = Field(description="Head: module of mmtrain/modalities, e.g. 'text', 'label'.")
    num_classes: int | None = Field(None, description="Classes, for an output net with a fixed set.")
    command_id: int | None = Field(None, description="Token id that starts decoding; None: no decoder.")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sequence inside the model: `values_BSD` with `mask_BS` (True where real); `grid` is (Y, X) when S = Y * X row-major."""

    values_BSD: Tensor
    mask_BS: Tensor
    grid: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a forward pass hands to the loss.

    Args:
        logits: (B, T, V) for sequences, (B, V) for classes.
        auxiliary_loss: the experts' balancing losses, already weighted: a mean-like scalar of this micro-batch.
        routing: rows sent to each expert, (E,) int64 by layer name; detached.
    """

    logits: Tensor
    auxiliary_loss: Tensor
    routing: Mapping[str, Tensor] = field(default_factory=dict)
