"""A mixture of experts as a graph whose shapes do not depend on what is routed where.

For runtimes that take graphs: every expert sees every position, and those that are not chosen
weigh 0. It answers as `MoE` does in evaluation mode, with E / k times the work in the experts.
"""

import torch
from torch import Tensor, nn

from mmtrain.layers.moe import Balance, MoE, Routed


class DenseMoE(nn.Module):
    """`MoE` in evaluation mode, of the layer that it is made from."""

    def __init__(self, layer: MoE) -> None:
        super().__init__()
        self.name, self.gate, self.norm = layer.name, layer.gate, layer.norm
        self.experts, self.expert_gate = layer.experts, layer.expert_gate

    def forward(self, x_BLD: Tensor, mask_BL1: Tensor) -> Routed:
        weights_BLE = self._weights(x_BLD) * mask_BL1.to(x_BLD.dtype)
        w_out_EFD = self.experts.hidden_gate(self.experts.w_out)
        hidden_BLEF = torch.einsum("bld,edf->blef", x_BLD, self.experts.w_in).relu()
        values_BLD = torch.einsum("ble,blef,efd->bld", weights_BLE, hidden_BLEF, w_out_EFD)
        if self.norm is not None:
            values_BLD = self.norm(x_BLD + values_BLD)
        zero = x_BLD.new_zeros(())
        return Routed(values_BLD, Balance(self.name, zero, zero))

    def _weights(self, x_BLD: Tensor) -> Tensor:
        """Of each expert at each position: softmax over the k best that are on, else 0."""
        scores_BLE, mask_E, k = self.gate.clean(x_BLD).float(), self.expert_gate.mask, self.gate.k
        if mask_E is not None:
            scores_BLE = scores_BLE.masked_fill(mask_E == 0, -torch.inf)
            k = min(k, int((mask_E != 0).sum()))
        top = scores_BLE.topk(min(k, scores_BLE.shape[-1]), dim=-1)
        none_BLE = torch.zeros_like(scores_BLE)
        weights_BLE = none_BLE.scatter(-1, top.indices, top.values.softmax(-1))
        return (weights_BLE if mask_E is None else weights_BLE * mask_E).to(x_BLD.dtype)


def with_dense_experts(model: nn.Module) -> nn.Module:
    """The model, changed in place: all its mixtures of experts are graphs of fixed shapes."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, MoE):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, DenseMoE(layer))
    return model
