"""Prunable units: parts of a model that may be switched off, and later be cut out.

A unit is a filter, a hidden channel, an attention head, or an expert. Units that must go together
are one group. A model names its groups (`prunable_units()`), each with the gates where a mask
acts on activations and the slices of parameters that cutting keeps; nothing else in the model
knows of pruning. A gate that has no mask hands its input on as it is.
"""

import difflib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
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

    def under(self, path: str) -> "Slice":
        """As the module names it that has the layer at `path`."""
        return replace(self, name=f"{path}.{self.name}")


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """Units of one kind that have one mask.

    Args:
        name: key of the group in the family's `Config.units`, which says how many are left.
        kind: what a unit is.
        size: units there are now.
        gates: paths of the `UnitGate` modules that the group's mask acts on.
        slices: tensors that a cut takes its units from.
        numbers: buffers (size,) of a model that was cut: for each unit that is left its number
            among all. A model that has them all has no such buffers.
    """

    name: str
    kind: Literal["filter", "hidden", "head", "expert"]
    size: int
    gates: tuple[str, ...]
    slices: tuple[Slice, ...]
    numbers: tuple[str, ...] = ()

    def under(self, path: str) -> "UnitGroup":
        """As the module names it that has the layer at `path`."""
        return replace(
            self,
            name=f"{path}.{self.name}",
            gates=tuple(f"{path}.{gate}" for gate in self.gates),
            slices=tuple(held.under(path) for held in self.slices),
            numbers=tuple(f"{path}.{name}" for name in self.numbers),
        )


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

    def under(self, path: str) -> "ScaleSite":
        """As the module names it that has the layer at `path`."""
        names = {name: f"{path}.{getattr(self, name)}" for name in ("gate", "group", "weight")}
        return replace(self, **names)


class UnitsError(MMTrainError):
    """A model whose parts cannot be cut together, or counts of units that it cannot have."""


@dataclass(frozen=True, slots=True)
class UnitCounts:
    """How many units the groups of a layer have: what a config's `units` says below a path.

    Args:
        left: units by group; a group that is not named has all.
        path: what stands before the layer's own names of groups.
    """

    left: Mapping[str, int] = field(default_factory=dict)
    path: str = ""

    def below(self, name: str) -> "UnitCounts":
        """The counts of a layer's part."""
        return UnitCounts(self.left, f"{self.path}{name}.")

    def count(self, group: str, *, of: int) -> int:
        """Units that a group has, which were `of` before any was cut.

        Raises:
            UnitsError: none is left, or more than there were.
        """
        count = self.left.get(self.path + group, of)
        if not 1 <= count <= of:
            raise UnitsError(
                f"units[{self.path + group!r}] is {count}; the group has 1 to {of} units"
            )
        return count


WHOLE = UnitCounts()  # nothing was cut


def below(path: str, modules: nn.ModuleDict) -> dict[str, nn.Module]:
    """Modules of a dict by their paths from the module that has the dict at `path`."""
    return {f"{path}.{name}": module for name, module in modules.items()}


def units_within(module: nn.Module) -> tuple[UnitGroup, ...]:
    """Groups of all layers inside that have `own_units()`, by paths from the module."""
    return _collected(module.named_modules(), "own_units")


def sites_within(module: nn.Module) -> tuple[ScaleSite, ...]:
    """Scale sites of all layers inside that have `own_sites()`, by paths from the module."""
    return _collected(module.named_modules(), "own_sites")


def _collected(modules: Iterable[tuple[str, nn.Module]], method: str) -> tuple[Any, ...]:
    """What those of the modules tell that have the method, as the whole names it."""
    return tuple(
        own.under(path) for path, module in modules for own in getattr(module, method, tuple)()
    )


def check_units(units: Mapping[str, int], module: nn.Module) -> None:
    """Refuses counts of groups that no layer inside has.

    Raises:
        UnitsError: names the first such group, and the nearest ones.
    """
    names = {group.name for group in units_within(module)}
    for name in units:
        if name not in names:
            near = difflib.get_close_matches(name, sorted(names))
            raise UnitsError(f"units names group {name!r}, which is not there; nearest: {near}")


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
    return tuple(
        replace(group, slices=group.slices + _input_slices(readers))
        if group.name == read
        else group
        for group in _collected(parts.items(), "prunable_units")
    )


def join_sites(parts: Mapping[str, nn.Module]) -> tuple[ScaleSite, ...]:
    """Scale sites of parts with `scale_sites()` as the whole names them."""
    return _collected(parts.items(), "scale_sites")


def _input_slices(readers: Mapping[str, nn.Module]) -> tuple[Slice, ...]:
    slices: tuple[Slice, ...] = ()
    for path, reader in readers.items():
        own: Callable[[], Sequence[Slice]] | None = getattr(reader, "input_slices", None)
        if own is None:
            raise UnitsError(
                f"{path}: its net cannot follow when channels of the body are cut; "
                "give the task an output net with input_slices, such as 'linear'"
            )
        slices += tuple(held.under(path) for held in own())
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


class UnitChoice(nn.Module):
    """Of what is passed in, the units that a cut left for the layer behind; whole, all of them.

    A layer that reads a shared stream, which stays as wide as it was, picks its units from there.

    Args:
        left: units of the layer.
        of: units passed in, along the last axis.
        width: consecutive entries of that axis that are one unit.
    """

    numbers: Tensor | None

    def __init__(self, left: int, *, of: int, width: int = 1) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("numbers", torch.arange(left) if left < of else None)

    def forward(self, values: Tensor) -> Tensor:
        if self.numbers is None:
            return values
        entries = self.numbers
        if self.width > 1:
            within = torch.arange(self.width, device=entries.device)
            entries = (entries[:, None] * self.width + within).flatten()
        # on a CPU twice as fast along the last axis as index_select
        return values.gather(-1, entries.expand(*values.shape[:-1], -1))


@contextmanager
def gated(model: nn.Module, masks: Mapping[str, Tensor]) -> Generator[None]:
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
