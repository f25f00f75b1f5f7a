"""Masks from a network: which subtasks go in, the masks of their union come out.

Takes the place of the bank's parameters (WO2021251960A1: a network that regresses the masks). Its
weights do not grow with the number of subtasks times units, and it may give a union other units
than its members have; so a larger union does not always keep more.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mmtrain.layers.units import ScaleSite, UnitGroup
from mmtrain.masks.banks import MaskBank, draw_values
from mmtrain.masks.config import PruningConfig

SMALL = 1e-2  # of the last layer's weights beside sigma: at first all unions have nearly one mask


class MaskNetwork(MaskBank):
    """Masks of n basis subtasks by a network of one hidden layer.

        h = ReLU(W1 x + b1)        x (n,): 1 where the subtask is in the union
        (v, s) = W2 h + b2         U = |v|,  S = 1 + s

    Its parameters are `hidden` and `out`; arguments and methods are those of `MaskBank`.
    """

    def _add_parameters(self, seed: int) -> None:
        num_values = self.num_utilities + self.num_scales
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.Linear(len(self.subtasks), self.config.generator_dim)
            self.out = nn.Linear(self.config.generator_dim, num_values)
            nn.init.normal_(self.out.weight, std=SMALL * self.config.sigma)
            nn.init.zeros_(self.out.bias)
        drawn = draw_values((self.num_utilities,), config=self.config, seed=seed).abs()
        self.out.bias.data[: self.num_utilities] = drawn

    def _union(self, members: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        weight = self.hidden.weight
        union = torch.zeros(len(self.subtasks), device=weight.device, dtype=weight.dtype)
        union[list(members)] = 1
        values = cast(Tensor, self.out(self.hidden(union).relu())).float()
        utility, scales = values.split([self.num_utilities, self.num_scales])
        return utility.abs(), (1 + scales) if self.sites else None


def build_masks(
    config: PruningConfig,
    *,
    groups: Sequence[UnitGroup],
    sites: Sequence[ScaleSite],
    seed: int,
) -> MaskBank:
    """The masks of a model's units as the config wants them.

    Raises:
        MaskError: the model has no units.
    """
    bank = MaskBank if config.generator == "direct" else MaskNetwork
    return bank(groups, sites, config=config, seed=seed)
