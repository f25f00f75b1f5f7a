"""Modality nets: how arrays of a kind enter the body as positions, and how positions leave it.

The name is the module: `mmtrain/modalities/<net>.py` defines

    Config                                      its settings, frozen, all with defaults. What it
                                                needs of features, `fitting.py` takes: see there
    Input(config, *, model_dim, vocab_size)     stem: (inputs, lengths) -> Encoded; `dims` is 1 for
                                                sequences, 2 for grids. None: no stem. It may have
                                                units to cut out, see layers/units.py; it is built
                                                with the counts in `Config.units`.
    Output(config, *, model_dim, vocab_size, num_outputs, dims)
                                                head: Encoded -> logits. `reads` is "encoded" for a
                                                head on the encoder, "decoded" for one that decodes,
                                                which also has `start(targets, ...)`, the shifted
                                                targets. None: no head.

An output net with a fixed set of classes is built once for each task, any other once for all. A
head whose `Config` has `init` can start otherwise for one task than for another.
"""

import importlib
import pkgutil
from types import ModuleType

from pydantic import BaseModel

from pipelines.errors import MMTrainError, UnknownNameError


class HeadInitError(MMTrainError):
    """A task asks its head to start in a way that the head does not know."""


def names() -> tuple[str, ...]:
    """Names of all modality nets."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> ModuleType:
    """The module of a modality net.

    Raises:
        UnknownNameError: there is no such net.
    """
    if name not in names():
        raise UnknownNameError("modality net", name, names())
    return importlib.import_module(f"{__name__}.{name}")


def with_init(config: BaseModel, init: str | None, *, task: str) -> BaseModel:
    """A head's config as a task wants its weights to start; None: as it is.

    Raises:
        HeadInitError: the head has no such choice.
    """
    if init is None:
        return config
    if "init" not in type(config).model_fields:
        raise HeadInitError(
            f"task {task}: head_init={init} is of heads 'linear' and 'elements', its head is "
            f"{type(config).__module__.rpartition('.')[2]!r}; leave it out"
        )
    return config.model_copy(update={"init": init})
