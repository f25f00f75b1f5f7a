"""Utility and scaling masks of basis subtasks, and what a union of them keeps.

A bank holds two vectors for each basis subtask: how much it needs each unit, and a factor for each
input channel of each convolution but the first. Everything about a union of subtasks follows from
those of its members; nothing is learned for a union itself.

    U_T      = |V_T|                                        N  units of all groups
    U_(A+B)  = max(U_A, U_B)
    S_(A+B)  = the entry of larger magnitude, with its sign
    B_T      = 1 where U_T > tau, else 0                    WO2021251960A1

In the backward pass B_T counts as U_T (Bengio et al., arXiv:1308.3432, Sec. 4).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmtrain.layers.units import ScaleSite, UnitGroup
from mmtrain.masks.config import PruningConfig
from pipelines.errors import MMTrainError, UnknownNameError


class MaskError(MMTrainError):
    """Subtasks or a model that masks cannot be made for."""


@dataclass(frozen=True, slots=True)
class SubtaskMasks:
    """Masks of one union of basis subtasks.

    Args:
        subtasks: the basis subtasks, in the bank's order.
        threshold: utility above which a unit is kept.
        gates: mask by path of gate, for `gated`: 0 or 1 for each unit, or a scale; with gradients.
        utility: (N,) of the units of all groups, in the bank's order; with gradients.
        kept: bool for each unit, by group; at least one unit of every group.
        scale: factor of each unit's channel, by path of the scale site's gate; with gradients.
    """

    subtasks: tuple[str, ...]
    threshold: float
    gates: dict[str, Tensor]
    utility: Tensor
    kept: dict[str, Tensor]
    scale: dict[str, Tensor]

    def emptied(self) -> tuple[str, ...]:
        """Groups of which no unit reaches the threshold, so that the best one is kept."""
        parts = self.utility.split([len(kept) for kept in self.kept.values()])
        named = zip(self.kept, parts, strict=True)
        return tuple(name for name, part in named if not bool((part > self.threshold).any()))

    def kept_share(self) -> float:
        """Units that are kept over all units."""
        kept = torch.cat(list(self.kept.values()))
        return float(kept.float().mean())


class MaskBank(nn.Module):
    """Masks of n basis subtasks, each subtask's own parameters.

    Parameters are `utility` (n, N) and, where something is scaled, `scaling` (n, channels); with
    granularity 'layer', `utility` has one entry for a group in place of one for a unit.

    Args:
        groups: the model's units, in the order of the entries.
        sites: where the model's convolutions are scaled.
        config: the subtasks and how masks are made.
        seed: of the utilities drawn at the start.

    Raises:
        MaskError: the model has no units.
    """

    def __init__(
        self,
        groups: Sequence[UnitGroup],
        sites: Sequence[ScaleSite] = (),
        *,
        config: PruningConfig,
        seed: int,
    ) -> None:
        super().__init__()
        if not groups:
            raise MaskError("the model has no prunable units; give one of its layers units")
        self.config = config
        self.groups = tuple(groups)
        self.sites = tuple(sites) if config.scaling == "on" else ()
        self.subtasks = tuple(config.subtasks)
        sizes = {group.name: group.size for group in groups}
        assert len(sizes) == len(self.groups), "two groups have one name"
        self._sizes = list(sizes.values())
        self._scale_sizes = [sizes[site.group] for site in self.sites]
        self._add_parameters(seed)

    def _add_parameters(self, seed: int) -> None:
        shape = (len(self.subtasks), self.num_utilities)
        self.utility = nn.Parameter(draw_values(shape, config=self.config, seed=seed))
        scaling = torch.ones(len(self.subtasks), self.num_scales) if self.sites else None
        self.register_parameter("scaling", None if scaling is None else nn.Parameter(scaling))

    @property
    def num_utilities(self) -> int:
        """Utilities of a subtask: units, or groups."""
        return len(self.groups) if self.config.granularity == "layer" else sum(self._sizes)

    @property
    def tasks(self) -> frozenset[str]:
        """Tasks that some subtask has, whole or classes of them."""
        entries = (entry for named in self.config.subtasks.values() for entry in named)
        return frozenset(entry.partition(":")[0] for entry in entries)

    @property
    def num_scales(self) -> int:
        """Scales of a subtask."""
        return sum(self._scale_sizes)

    def masks(self, subtasks: Sequence[str], *, threshold: float | None = None) -> SubtaskMasks:
        """The masks of a union; the order of its members makes no difference.

        Args:
            subtasks: basis subtasks, at least one.
            threshold: in place of the config's tau.

        Raises:
            UnknownNameError: there is no such basis subtask.
            MaskError: no subtask is named.
        """
        members = self.members(subtasks)
        tau = self.config.tau if threshold is None else threshold
        utility, scales = self._union(members)
        if self.config.granularity == "layer":
            sizes = torch.tensor(self._sizes, device=utility.device)
            utility = utility.repeat_interleave(sizes, output_size=sum(self._sizes))
        kept = {
            group.name: keep(part.detach(), threshold=tau)
            for group, part in zip(self.groups, utility.split(self._sizes), strict=True)
        }
        binary = self._straight_through(utility, torch.cat(list(kept.values())), tau=tau)
        parts = () if scales is None else scales.split(self._scale_sizes)
        scale = {site.gate: part for site, part in zip(self.sites, parts, strict=True)}
        return SubtaskMasks(
            subtasks=tuple(self.subtasks[member] for member in members),
            threshold=tau,
            gates=self._at_gates(binary, scale),
            utility=utility,
            kept=kept,
            scale=scale,
        )

    def members(self, subtasks: Iterable[str]) -> list[int]:
        """Numbers of basis subtasks, each once, ascending.

        Raises:
            UnknownNameError: there is no such basis subtask.
            MaskError: no subtask is named.
        """
        named = set(subtasks)
        for name in sorted(named.difference(self.subtasks)):
            raise UnknownNameError("basis subtask", name, self.subtasks)
        if not named:
            raise MaskError(f"no subtask is named; there are: {', '.join(self.subtasks)}")
        return [number for number, name in enumerate(self.subtasks) if name in named]

    def _union(self, members: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Utility of each unit or group, and scales (channels,), of a union."""
        utility = self.utility.float()[members].abs().amax(dim=0)
        scaling = cast(Tensor | None, self.scaling)
        return utility, None if scaling is None else max_abs(scaling.float()[members])

    def _at_gates(self, binary: Tensor, scale: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks and scales by gate; a gate that is for both has their product."""
        gates = {
            gate: part
            for group, part in zip(self.groups, binary.split(self._sizes), strict=True)
            for gate in group.gates
        }
        both = {gate: gates[gate] * part for gate, part in scale.items() if gate in gates}
        return {**gates, **scale, **both}

    def _straight_through(self, utility: Tensor, kept: Tensor, *, tau: float) -> Tensor:
        if self.config.straight_through == "identity":
            passes = torch.ones_like(kept)
        else:
            passes = (utility.detach() - tau).abs() < 1
        return cast(Tensor, _StraightThrough.apply(utility, kept, passes))


def draw_values(shape: tuple[int, ...], *, config: PruningConfig, seed: int) -> Tensor:
    """V ~ N(0, sigma^2): |V| is above tau with probability erfc(tau / (sigma sqrt(2)))."""
    generator = torch.Generator().manual_seed(seed)
    return config.sigma * torch.randn(shape, generator=generator, device="cpu")


def keep(utility: Tensor, *, threshold: float) -> Tensor:
    """Units of a group that are above the threshold, bool; where none is, the (first) best one."""
    above = utility > threshold
    best = torch.arange(len(utility), device=utility.device) == utility.argmax()
    return above | (best & ~above.any())


def max_abs(values: Tensor) -> Tensor:
    """Along axis 0 the entry of largest magnitude, with its sign; of x and -x the positive one.

    The gradient goes to that entry, to equal ones in equal parts.
    """
    largest, smallest = values.amax(dim=0), values.amin(dim=0)
    return torch.where(largest >= -smallest, largest, smallest)


class _StraightThrough(torch.autograd.Function):
    """The kept units as exactly 0 or 1; the gradient goes to the utilities as it is.

    `kept + (utility - utility.detach())` would do the same, in three passes over the values.
    """

    @staticmethod
    def forward(ctx: Any, utility: Tensor, kept: Tensor, passes: Tensor) -> Tensor:
        ctx.save_for_backward(passes)
        return kept.to(utility.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (passes,) = ctx.saved_tensors
        return grad_outputs[0] * passes, None, None
