"""Prunable units: parts of a model that may be switched off, and later be cut out.

A unit is a filter, a hidden channel, an attention head, or an expert. Units that must go together
are one group. A model names its groups (`prunable_units()`), each with the gates where a mask
acts on activations and the slices of parameters that cutting keeps; nothing else in the model
knows of pruning. A gate that has no mask hands its input on as it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from pipelines.errors import MMTrainError


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a group's units lie in one tensor of the model's state.

    Unit u holds the entries [offset + u * width, offset + (u + 1) * width) of the axis.

    Args:
        name: parameter or buffer, as `state_dict` names it.
        axis: axis along which the units lie.
        width: entries of a unit.
        offset: first entry of unit 0; entries that are no group's units stay.
    """

    name: str
    axis: int
    width: int = 1
    offset: int = 0


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """Units of one kind that have one mask.

    Args:
        name: key of the group in the family's `Config.units`, which says how many are left.
        kind: what a unit is.
        size: units there are now.
        gates: paths of the `UnitGate` modules that the group's mask acts on.
        slices: tensors that a cut takes its units from.
    """

    name: str
    kind: Literal["filter", "hidden", "head", "expert"]
    size: int
    gates: tuple[str, ...]
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class ScaleSite:
    """Where a scaling mask acts: the input channels of a convolution that is not the first.

    Args:
        gate: path of the `UnitGate` before the convolution.
        group: the group whose units the channels are.
        weight: the convolution's weight, into which a cut folds the scale along `axis`.
        axis: axis of the input channels.
    """

    gate: str
    group: str
    weight: str
    axis: int = 1


class UnitsError(MMTrainError):
    """A model whose parts cannot be cut together."""


def below(path: str, modules: nn.ModuleDict) -> dict[str, nn.Module]:
    """Modules of a dict by their paths from the module that has the dict at `path`."""
    return {f"{path}.{name}": module for name, module in modules.items()}


def join_groups(
    parts: Mapping[str, nn.Module], *, read: str, readers: Mapping[str, nn.Module]
) -> tuple[UnitGroup, ...]:
    """Groups of parts as the whole names them that has these parts by path.

    Args:
        parts: modules with `prunable_units()`, or without units.
        read: the group, as the whole names it, whose units are what `readers` read.
        readers: modules by path; those of a group's units have `input_slices()`.

    Raises:
        UnitsError: a reader cannot be cut.
    """
    joined = []
    for path, part in parts.items():
        groups: tuple[UnitGroup, ...] = getattr(part, "prunable_units", tuple)()
        for group in groups:
            name = f"{path}.{group.name}"
            gates = tuple(f"{path}.{gate}" for gate in group.gates)
            slices = _below(path, group.slices)
            if name == read:
                slices += _input_slices(readers)
            joined.append(UnitGroup(name, group.kind, group.size, gates, slices))
    return tuple(joined)


def join_sites(parts: Mapping[str, nn.Module]) -> tuple[ScaleSite, ...]:
    """Scale sites of parts with `scale_sites()` as the whole names them."""
    joined = []
    for path, part in parts.items():
        sites: tuple[ScaleSite, ...] = getattr(part, "scale_sites", tuple)()
        for site in sites:
            gate, group, weight = (f"{path}.{x}" for x in (site.gate, site.group, site.weight))
            joined.append(ScaleSite(gate, group, weight, site.axis))
    return tuple(joined)


def _below(path: str, slices: Sequence[Slice]) -> tuple[Slice, ...]:
    return tuple(replace(held, name=f"{path}.{held.name}") for held in slices)


def _input_slices(readers: Mapping[str, nn.Module]) -> tuple[Slice, ...]:
    slices: tuple[Slice, ...] = ()
    for path, reader in readers.items():
        own: Callable[[], Sequence[Slice]] | None = getattr(reader, "input_slices", None)
        if own is None:
            raise UnitsError(
                f"{path}: its net cannot follow when channels of the body are cut; "
                "give the task an output net with input_slices, such as 'linear'"
            )
        slices += _below(path, own())
    return slices


class UnitGate(nn.Module):
    """Multiplies each unit's activations by its entry of the mask; without one, does nothing.

    It stands behind the activation function: a unit that is off then still has a gradient with
    respect to its mask, and can come back.

    Args:
        axis: axis of the units in what is passed in.
        width: consecutive entries of that axis that are one unit.
    """

    def __init__(self, *, axis: int = -1, width: int = 1) -> None:
        super().__init__()
        self.axis, self.width = axis, width
        self.mask: Tensor | None = None

    def forward(self, values: Tensor) -> Tensor:
        if self.mask is None:
            return values
        mask = self.mask if self.width == 1 else self.mask.repeat_interleave(self.width)
        shape = [1] * values.ndim
        shape[self.axis] = -1
        return values * mask.to(values.dtype).view(shape)


@contextmanager
def gated(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, the gates of these paths have these masks; afterwards what they had before."""
    before = put_on(model, masks)
    try:
        yield
    finally:
        put_on(model, before)


def put_on(model: nn.Module, masks: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Gives the gates of these paths these masks, to stay; returns what they had before."""
    before = {}
    for path, mask in masks.items():
        gate = model.get_submodule(path)
        assert isinstance(gate, UnitGate), "masks act at gates"
        before[path], gate.mask = gate.mask, mask
    return before
