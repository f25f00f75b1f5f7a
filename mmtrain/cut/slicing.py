"""Cutting: from a model and the units to keep, a smaller model of the same class.

The smaller model is built by the same code from a config that says how many units a group has left
(`units`), and gets the kept entries of the whole model's weights. Scales of input channels are
folded into the weights that they multiply. Nothing in it knows that it was cut.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mmtrain import modalities
from mmtrain.layers.units import Slice, UnitGroup
from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, head_name, model_with
from pipelines.errors import MMTrainError, UnknownNameError


class CutError(MMTrainError):
    """A cut that cannot be made."""


def cut(
    model: MultiTaskModel,
    kept: Mapping[str, Tensor],
    *,
    scale: Mapping[str, Tensor] | None = None,
    tasks: Sequence[str] | None = None,
    outputs: Mapping[str, Sequence[int]] | None = None,
) -> MultiTaskModel:
    """The smaller model, in evaluation mode; `model` stays as it is.

    It computes what `model` does in evaluation mode with masks of these units and scales. Nets and
    heads that no task needs are left out.

    Args:
        model: the whole model, or one that was cut before.
        kept: by group, bool (size,), True where a unit stays; of groups not named all stay.
        scale: factor of each unit's channel, (size,), by path of the scale site's gate.
        tasks: tasks that stay; None: all.
        outputs: by task, the scores that stay, in their new order; of tasks not named all stay.

    Raises:
        UnknownNameError: the model has no such group, scale site or task.
        CutError: a group would be empty, or a mask or score is none of the group's or head's.
    """
    groups = {group.name: group for group in model.prunable_units()}
    outputs = {model.task(name).name: scores for name, scores in (outputs or {}).items()}
    _check_units(groups, kept)
    specs = _narrowed_tasks(model, tasks=tasks, outputs=outputs)
    config = narrowed_config(model.config, groups=groups, kept=kept, tasks=specs)
    used = _used_by(model, specs)
    weights = {name: value.detach() for name, value in model.state_dict().items() if used(name)}
    weights |= _folded(model, weights, scale=scale or {})
    entries = _entries(model, groups=groups, kept=kept, outputs=outputs)
    small = {name: _select(value, entries.get(name, {})) for name, value in weights.items()}
    small |= _numbers(model, groups=groups, kept=kept, used=used)
    return model_with(config, specs, small)


def narrowed_config(
    config: ModelConfig,
    *,
    groups: Mapping[str, UnitGroup],
    kept: Mapping[str, Tensor],
    tasks: Iterable[TaskSpec],
) -> ModelConfig:
    """The config of the model that has only the kept units, and only the nets of these tasks.

    Args:
        config: the whole model's.
        groups: the whole model's, by name.
        kept: by group, bool (size,), True where a unit stays.
        tasks: tasks that stay.
    """
    tasks = list(tasks)
    nets = {net for task in tasks for net in (task.input_net, task.output_net)}
    inputs = {task.stem: task.input_net for task in tasks}
    body: dict[str, int] = dict(getattr(config.body, "units", {}))
    stems: dict[str, dict[str, int]] = {}
    for name, mask in kept.items():
        count, (part, rest) = int(mask.sum()), name.split(".", 1)
        if count == groups[name].size:
            continue
        if part == "stems":
            net, group = rest.split(".", 1)
            stems.setdefault(net, {})[group] = count
        else:
            body[rest if part == "body" else name] = count
    body = {name: n for name, n in body.items() if _is_of(name, inputs)}
    left = {net: settings for net, settings in config.nets.items() if net in nets}
    for stem in inputs.keys() & stems.keys():
        net = inputs[stem]
        settings: Any = left.get(net) or modalities.load(net).Config()
        left[net] = settings.model_copy(update={"units": {**settings.units, **stems[stem]}})
    smaller = config.body.model_copy(update={"units": body}) if body else config.body
    return config.model_copy(update={"body": smaller, "nets": left})


def _is_of(group: str, nets: Iterable[str]) -> bool:
    """Whether a group of the body's config is the body's, or of an adapter of these nets."""
    return not group.startswith("adapters.") or group.split(".")[1] in nets


def _check_units(groups: Mapping[str, UnitGroup], kept: Mapping[str, Tensor]) -> None:
    for name, mask in kept.items():
        if name not in groups:
            raise UnknownNameError("group of units", name, tuple(groups))
        if mask.dtype != torch.bool or mask.shape != (groups[name].size,):
            raise CutError(
                f"{name}: a mask of {mask.dtype} {tuple(mask.shape)} for {groups[name].size} "
                "units; give one bool for each"
            )
        if not mask.any():
            raise CutError(f"{name}: no unit would be left; keep at least the best one")


def _narrowed_tasks(
    model: MultiTaskModel, *, tasks: Sequence[str] | None, outputs: Mapping[str, Sequence[int]]
) -> list[TaskSpec]:
    """The tasks that stay, in the model's order, with as many scores as stay."""
    named = list(model.tasks) if tasks is None else [model.task(name).name for name in tasks]
    if not named:
        raise CutError(f"no task is named; the model has {', '.join(model.tasks)}")
    specs: list[TaskSpec] = []
    for spec in model.tasks.values():
        if spec.name in outputs:
            _check_outputs(spec, outputs[spec.name])
            spec = spec.model_copy(update={"num_outputs": len(outputs[spec.name])})
        if spec.name in named:
            specs.append(spec)
    return specs


def _check_outputs(spec: TaskSpec, scores: Sequence[int]) -> None:
    count = spec.num_outputs or 0
    if spec.output_groups or not count:
        raise CutError(f"task {spec.name}: it has no single set of classes to choose from")
    if not scores or len(set(scores)) < len(scores) or not set(scores) <= set(range(count)):
        raise CutError(
            f"task {spec.name}: scores {list(scores)} cannot stay; "
            f"name some of 0 to {count - 1}, each once"
        )


def _entries(
    model: MultiTaskModel,
    *,
    groups: Mapping[str, UnitGroup],
    kept: Mapping[str, Tensor],
    outputs: Mapping[str, Sequence[int]],
) -> dict[str, dict[int, Tensor]]:
    """Of each tensor and axis that loses entries: numbers of those that stay."""
    weights = model.state_dict()
    masks: dict[tuple[str, int], Tensor] = {}
    for name, mask in kept.items():
        for held in groups[name].slices:
            key = (held.name, held.axis)
            if key not in masks:
                masks[key] = torch.ones(weights[held.name].shape[held.axis], dtype=torch.bool)
            _mark(masks[key], held, mask.cpu())
    entries: dict[str, dict[int, Tensor]] = {}
    for (name, axis), mask in masks.items():
        if not mask.all():
            entries.setdefault(name, {})[axis] = mask.nonzero().squeeze(1)
    for task, scores in outputs.items():
        path = f"heads.{head_name(model.tasks[task])}"
        for held in cast(Any, model.get_submodule(path)).output_slices():
            entries.setdefault(f"{path}.{held.name}", {})[held.axis] = torch.tensor(list(scores))
    return entries


def _mark(stays: Tensor, held: Slice, mask: Tensor) -> None:
    """Writes a group's mask where its units lie on the axis of a tensor."""
    end = held.offset + held.width * len(mask)
    stays[held.offset : end] &= mask.repeat_interleave(held.width)


def _used_by(model: MultiTaskModel, tasks: Iterable[TaskSpec]) -> Callable[[str], bool]:
    """Whether these tasks use the weight of a name."""
    used = {path for task in tasks for path in model.children_of(task.name)}
    return lambda name: ".".join(name.split(".")[:2]) in used


def _numbers(
    model: MultiTaskModel,
    *,
    groups: Mapping[str, UnitGroup],
    kept: Mapping[str, Tensor],
    used: Callable[[str], bool],
) -> dict[str, Tensor]:
    """Of layers that remember which units they have: their numbers before the first cut."""
    before = model.state_dict()
    numbers: dict[str, Tensor] = {}
    for group, mask in kept.items():
        for name in filter(used, groups[group].numbers):
            if name in before or not mask.all():
                all_numbers = before.get(name, torch.arange(len(mask), device=mask.device))
                numbers[name] = all_numbers[mask.to(all_numbers.device)]
    return numbers


def _folded(
    model: MultiTaskModel, weights: Mapping[str, Tensor], *, scale: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights behind scale sites, times the scale of their input channels."""
    sites = {site.gate: site for site in model.scale_sites()}
    folded: dict[str, Tensor] = {}
    for gate, factors in scale.items():
        if gate not in sites:
            raise UnknownNameError("scale site", gate, tuple(sites))
        site = sites[gate]
        if site.weight not in weights:
            continue  # of a net that stays behind
        weight = folded.get(site.weight, weights[site.weight])
        shape = [1] * weight.ndim
        shape[site.axis] = -1
        folded[site.weight] = weight * factors.detach().to(weight).view(shape)
    return folded


def _select(value: Tensor, entries: Mapping[int, Tensor]) -> Tensor:
    for axis, numbers in entries.items():
        value = value.index_select(axis, numbers.to(value.device))
    return value if entries else value.clone()
