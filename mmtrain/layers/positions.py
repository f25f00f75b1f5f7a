"""Where positions of inputs and targets stand: what is real, its timing, what may look at what."""

import torch
from torch import Tensor

from mmtrain.layers.conv import Place
from mmtrain.layers.encoded import Encoded
from mmtrain.layers.memory import Memory
from mmtrain.layers.timing import timing_signal


def padding_bias(mask_BM: Tensor, *, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1, M): 0 where a position is real, the dtype's lowest number where it is padding.

    Finite, so that a row with nothing real attends evenly and gives no NaN.
    """
    bias_BM = torch.zeros(mask_BM.shape, dtype=dtype, device=mask_BM.device)
    return bias_BM.masked_fill_(~mask_BM, torch.finfo(dtype).min)[:, None, None, :]


def causal_bias(length: int, *, past: int, like: Tensor) -> Tensor:
    """(length, past + length): 0 up to the position itself, the lowest number after it."""
    lowest = torch.finfo(like.dtype).min
    bias_LM = torch.full((length, past + length), lowest, dtype=like.dtype, device=like.device)
    return bias_LM.triu_(past + 1)


def target_place(shifted: Encoded, *, first: int, memory: Memory | None = None) -> Place:
    """Place of target positions from `first` on, each of which sees those up to itself."""
    values_BTD = shifted.values_BSD
    length, depth = values_BTD.shape[1:]
    timing_TD = timing_signal(first + length, depth=depth, like=values_BTD)[first:]
    mask_BT1 = shifted.mask_BS.unsqueeze(-1).to(values_BTD.dtype)
    return Place(mask_BT1, timing_TD, causal_bias(length, past=first, like=values_BTD), memory)


def joined_place(new: Encoded, seen_mask_BM: Tensor, *, memory: Memory | None = None) -> Place:
    """Place of the last positions of input and target in line, counted from the first real one.

    `seen_mask_BM` is True where a position is real, of all positions up to the last new one.
    """
    values_BLD = new.values_BSD
    length, depth = values_BLD.shape[1:]
    total = seen_mask_BM.shape[1]
    first_B1 = seen_mask_BM.int().argmax(dim=1, keepdim=True)
    places_BL = torch.arange(total - length, total, device=values_BLD.device) - first_B1
    timing_BLD = timing_signal(total, depth=depth, like=values_BLD)[places_BL.clamp(min=0)]
    bias_BHLM = torch.minimum(
        causal_bias(length, past=total - length, like=values_BLD),
        padding_bias(seen_mask_BM, dtype=values_BLD.dtype),
    )
    mask_BL1 = new.mask_BS.unsqueeze(-1).to(values_BLD.dtype)
    return Place(mask_BL1, timing_BLD, bias_BHLM, memory)


def left_padded(encoded: Encoded) -> Encoded:
    """The same positions, real ones last and in order: what follows touches the last of them."""
    order_BS = encoded.mask_BS.to(torch.int8).argsort(dim=1, stable=True)
    index_BSD = order_BS.unsqueeze(-1).expand_as(encoded.values_BSD)
    return Encoded(encoded.values_BSD.gather(1, index_BSD), encoded.mask_BS.gather(1, order_BS))
