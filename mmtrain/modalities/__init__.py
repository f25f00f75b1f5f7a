"""Modality nets: how arrays of a kind enter the body as positions, and how positions leave it.

A net is a module: a shipped one, `mmtrain/modalities/<net>.py`, or a user's own file, named by its
path, which may be the file of its modality. It defines

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

import re
import sys
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel

from pipelines.errors import MMTrainError
from pipelines.names import load_module, module_names


class HeadInitError(MMTrainError):
    """A task asks its head to start in a way that the head does not know."""


def names() -> tuple[str, ...]:
    """Names of the shipped modality nets."""
    return module_names(sys.modules[__name__])


def load(name: str) -> ModuleType:
    """The module of a modality net, shipped or a user's own.

    Raises:
        UnknownNameError: there is no such net.
        OwnCodeError: the user's file is gone, does not run, or lacks a part.
    """
    needs = ("Config", "Input", "Output")
    return load_module(name, kind="modality net", package=sys.modules[__name__], needs=needs)


def child_name(net: str) -> str:
    """The name of a net in a model's parameters: its own, and of a user's file without its folder.

    >>> child_name("spectral"), child_name("/home/me/tones.py")
    ('spectral', 'tones_py')
    """
    return re.sub(r"\W", "_", Path(net).name)


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
