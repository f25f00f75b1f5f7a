"""Fitting a model to its tasks: what nets need of features is taken from them, or refused.

A setting that is None is the feature's: channels, frames, bins, classes, tokens. One that is given
must be the feature's, and tasks that share a net must agree. All of it is known before a process
starts, so that no batch finds it out. The config of a net, or of a body, says what it needs of the
features of its inputs by class variables, all optional:

    TAKEN       fields that are equal to the feature's of the same name
    AT_LEAST    fields that no feature's of that name is above, with the least that None stands for
    AGREED      what all the features must have in common; the config has no such field
    grid        (Y, X) of the positions of a net of patches; raises where they do not divide

A head that needs something of the net behind it has `fill_head` and `check_head`: see `elements`.
"""

import itertools
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Protocol

from pydantic import BaseModel

from mmtrain import modalities as nets
from mmtrain.layers.patches import InputSizeError
from mmtrain.models.config import ModelConfig, families, load_family, net_of
from pipelines.errors import MMTrainError
from pipelines.modalities import Feature

BODY = "model.body"


class FittingError(MMTrainError):
    """A task's feature and a net that do not go together, or two tasks that share a net."""


class Sides(Protocol):
    """A task, as far as its nets are concerned."""

    @property
    def inputs(self) -> Feature:
        """What it takes."""
        ...

    @property
    def targets(self) -> Feature:
        """What it gives."""
        ...


def filled(
    config: ModelConfig, tasks: Mapping[str, Sides], *, is_saved: bool = False
) -> ModelConfig:
    """The config with what is None taken from the tasks, the first that says; nothing is checked.

    Args:
        config: of a model of these tasks.
        tasks: by name.
        is_saved: it is a trained model's, in which None is what it was when nothing was taken.
    """
    held = dict(config.nets)
    for net, features in _by_net(config, tasks).items():
        settings = _settings(held, net)
        if updates := dict(_missing(settings, features, is_saved=is_saved)):
            held[net] = settings.model_copy(update=updates)
    for task in tasks.values():
        net = net_of(config.family, task.targets)
        if fill_head := getattr(nets.load(net), "fill_head", None):
            stem = _settings(held, net_of(config.family, task.inputs))
            held[net] = fill_head(_settings(held, net), stem=stem)
    inputs = {name: task.inputs for name, task in tasks.items()}
    body = config.body.model_copy(update=dict(_missing(config.body, inputs, is_saved=is_saved)))
    return config.model_copy(update={"nets": held, "body": body})


def check_nets(config: ModelConfig, tasks: Mapping[str, Sides]) -> None:
    """Every feature has a net of the family on its side.

    Raises:
        FittingError: one has none; says what the family has, and which family has one.
    """
    for name, task in tasks.items():
        for side, feature in (("Input", task.inputs), ("Output", task.targets)):
            if _net_module(config.family, feature.net, side) is None:
                raise FittingError(_no_net(config.family, name, feature, side))
    used = {net_of(config.family, f) for t in tasks.values() for f in (t.inputs, t.targets)}
    for one, other in itertools.combinations(sorted(used), 2):
        if nets.child_name(one) == nets.child_name(other):
            raise FittingError(f"nets {one} and {other} have one name in a model; rename a file")


def check_fits(asked: ModelConfig, config: ModelConfig, tasks: Mapping[str, Sides]) -> None:
    """What was asked for and what was taken is that of every task.

    Args:
        asked: the config as it was given.
        config: the same, filled.
        tasks: by name.

    Raises:
        FittingError: names task, feature, net, both values and what to change.
    """
    for net, features in _by_net(config, tasks).items():
        place, settings = f"model.nets.{net}", _settings(config.nets, net)
        given = _settings(asked.nets, net)
        _check_settings(given, settings, features, place=place, reader=f"net {net!r}")
        _check_grid(settings, net=net, task=next(iter(features)))
    inputs = {name: task.inputs for name, task in tasks.items()}
    reader = f"the body of family {config.family!r}"
    _check_settings(asked.body, config.body, inputs, place=BODY, reader=reader)
    for name, task in tasks.items():
        net, head = (net_of(config.family, side) for side in (task.inputs, task.targets))
        if check_head := getattr(nets.load(head), "check_head", None):
            stem = _settings(config.nets, net)
            try:
                check_head(_settings(config.nets, head), stem=stem, net=net, targets=task.targets)
            except InputSizeError as error:
                raise FittingError(f"task {name}: {error}") from None


def _check_settings(
    given: BaseModel,
    settings: BaseModel,
    features: Mapping[str, Feature],
    *,
    place: str,
    reader: str,
) -> None:
    first, *_ = features
    for name, feature in features.items():
        for field in getattr(settings, "TAKEN", ()):
            value, own = getattr(settings, field), getattr(feature, field, None)
            if own is None:
                raise FittingError(
                    f"task {name}: {reader} needs {field} of {feature.modality} inputs, they have "
                    f"none; give it: --set tasks.{name}.inputs.{field}=NUMBER"
                )
            if value != own and getattr(given, field) is None:
                raise FittingError(_disagree(first, name, field, value, own, reader=reader))
            if value != own:
                raise FittingError(
                    f"task {name}: its {feature.modality} inputs have {field} {_shown(own)}, "
                    f"{reader} has {_shown(value)}; leave {place}.{field} out (null) to take the "
                    f"task's, or give the task the other{_setting(name, field, value)}"
                )
        for field in getattr(settings, "AT_LEAST", {}):
            value, own = getattr(settings, field), getattr(feature, field)
            if value < own:
                raise FittingError(
                    f"task {name}: its {feature.modality} inputs have {field} {own}, {reader} has "
                    f"{value}; leave {place}.{field} out (null) to take the longest, or bound the "
                    f"task's{_setting(name, field, value)}"
                )
        for field in getattr(settings, "AGREED", ()):
            value, own = getattr(features[first], field), getattr(feature, field)
            if value != own:
                raise FittingError(_disagree(first, name, field, value, own, reader=reader))


def _check_grid(settings: BaseModel, *, net: str, task: str) -> None:
    try:
        getattr(settings, "grid", None)
    except InputSizeError as error:
        raise FittingError(f"task {task}: net {net!r}: {error}") from None


def _disagree(
    first: str, second: str, field: str, value: object, own: object, *, reader: str
) -> str:
    return (
        f"tasks {first} and {second} share {reader}: the inputs of {first} have {field} "
        f"{_shown(value)}, those of {second} {_shown(own)}; give both the same"
        f"{_setting(second, field, value)}"
    )


def _setting(task: str, field: str, value: object) -> str:
    return "" if isinstance(value, tuple) else f": --set tasks.{task}.inputs.{field}={value}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value[:6])) + (f" and {len(value) - 6} more" * (len(value) > 6))
    return str(value)


def _by_net(config: ModelConfig, tasks: Mapping[str, Sides]) -> dict[str, dict[str, Feature]]:
    """Features of inputs by task, by the net that takes them."""
    found: dict[str, dict[str, Feature]] = {}
    for name, task in tasks.items():
        found.setdefault(net_of(config.family, task.inputs), {})[name] = task.inputs
    return found


def _settings(held: Mapping[str, BaseModel], net: str) -> BaseModel:
    return held.get(net) or nets.load(net).Config()


def _missing(
    settings: BaseModel, features: Mapping[str, Feature], *, is_saved: bool
) -> Iterator[tuple[str, object]]:
    """Fields that are None, with what the features say."""
    for field in getattr(settings, "TAKEN", ()):
        values = [getattr(feature, field, None) for feature in features.values()]
        if getattr(settings, field) is None and values[0] is not None:
            yield field, values[0]
    for field, least in getattr(settings, "AT_LEAST", {}).items():
        if getattr(settings, field) is None:
            longest = max(getattr(feature, field) for feature in features.values())
            yield field, least if is_saved else max(least, longest)


def _net_module(family: str, net: str, side: str) -> ModuleType | None:
    """The module by which a family takes or gives what a net's name says; None: it does not."""
    own: Mapping[str, str] | None = getattr(load_family(family), "NETS", None)
    name = net if own is None or "." in net else own.get(net)  # a user's own: by any family
    module = nets.load(name) if name and ("." in name or name in nets.names()) else None
    return module if getattr(module, side, None) else None


def _no_net(family: str, task: str, feature: Feature, side: str) -> str:
    known = (*nets.names(), *getattr(load_family(family), "NETS", ()))
    has = [net for net in dict.fromkeys(known) if _net_module(family, net, side)]
    others = [name for name in families() if _net_module(name, feature.net, side)]
    kind = feature.net if feature.net == feature.modality else f"{feature.modality} ({feature.net})"
    verb, what = ("takes", "inputs") if side == "Input" else ("gives", "targets")
    remedy = f"use family {' or '.join(map(repr, others))}, or" if others else "use"
    return (
        f"task {task}: family {family!r} {verb} no {kind} {what}, it has nets for "
        f"{', '.join(sorted(has))}; {remedy} {what} of these"
    )
