"""What a model costs: parameters, floating-point operations, bytes.

Operations are counted while the model runs, so that what is not run is not counted: an expert
that gets no row, a tap beyond a sequence. A multiplication and an addition count as two.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mmtrain.cut.examples import TaskInputs
from mmtrain.models.model import MultiTaskModel


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs.

    Args:
        parameters: of nets, adapters, body and heads; buffers and masks are none.
        flops: of one forward pass of the inputs that were given.
        bytes: of the weights and buffers of the same.
    """

    parameters: int
    flops: int
    bytes: int


def count(model: MultiTaskModel, inputs: Iterable[TaskInputs]) -> Cost:
    """The cost of a model and of one forward pass of each of the inputs, in evaluation mode.

    Matrix products, convolutions and attention are counted, not what is done element by element.

    Args:
        model: left in the mode that it was in.
        inputs: batches; their operations are added up.
    """
    held = {"stems", "adapters", "body", "heads"}
    weights = [value for name, value in model.named_parameters() if name.split(".")[0] in held]
    state = [value for name, value in model.state_dict().items() if name.split(".")[0] in held]
    return Cost(
        parameters=sum(weight.numel() for weight in weights),
        flops=sum(forward_flops(model, batch) for batch in inputs),
        bytes=sum(value.nbytes for value in state),
    )


@torch.no_grad()
def forward_flops(model: MultiTaskModel, batch: TaskInputs) -> int:
    """Operations of one forward pass in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        with counting() as counter:
            batch.forward(model)
    finally:
        model.train(was_training)
    return counter.get_total_flops()


def counting() -> FlopCounterMode:
    """A context in which operations are counted, `get_total_flops()` of them."""
    return FlopCounterMode(display=False, custom_mapping=_MORE)


def _attention(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    return sdpa_flop_count(query, key, value)


def _multiply_add(x: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * prod(x)


# Kernels that torch's table lacks: attention on a CPU, and the taps of DepthwiseConv
_MORE: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten.addcmul_: _multiply_add,
}
