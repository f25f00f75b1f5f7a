"""Modules that return dataclasses, under ZeRO 3.

ZeRO 3 gathers a module's weights again before its backward, through the tensors that the module
returned. It looks for them in tuples, lists and dicts, so a dataclass is turned into a dict before
its hooks see it, and into a dataclass again after them.
"""

from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn


class _Opened(dict[str, Any]):
    """Fields of a dataclass, and its class."""

    kind: type


def open_outputs(model: nn.Module) -> None:
    """Puts hooks around those that all modules have by now."""
    for module in model.modules():
        module.register_forward_hook(lambda _module, _inputs, out: _open(out), prepend=True)
        module.register_forward_hook(lambda _module, _inputs, out: _close(out))


def _open(value: Any) -> Any:
    if type(value) in (tuple, list):
        return type(value)(_open(part) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        opened = _Opened((part.name, _open(getattr(value, part.name))) for part in fields(value))
        opened.kind = type(value)
        return opened
    return value


def _close(value: Any) -> Any:
    if isinstance(value, _Opened):
        return value.kind(**{name: _close(part) for name, part in value.items()})
    return type(value)(_close(part) for part in value) if type(value) in (tuple, list) else value
