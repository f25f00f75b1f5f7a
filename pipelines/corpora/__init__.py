"""Makers of the offline corpora: real input for every shipped task, without a download.

The name is the module: `pipelines/corpora/<maker>.py` defines

    make(folder, *, seed) -> None       writes the corpus's splits, as ordinary raw files

The same seed gives the same bytes. The folder appears whole or not at all. Splits are `train`,
`validation`, `test`, and for some `test_hard`; nothing stands in two of them.
"""

import importlib
import os
import pkgutil
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pipelines.errors import UnknownNameError

PARTS = frozenset({"espeak"})  # modules of makers that make no corpus themselves


def names() -> tuple[str, ...]:
    """Names of all makers."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in modules if name not in PARTS))


def load(name: str) -> ModuleType:
    """The module of a maker.

    Raises:
        UnknownNameError: there is no such maker.
    """
    if name not in names():
        raise UnknownNameError("corpus maker", name, names())
    return importlib.import_module(f"{__name__}.{name}")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `folder` when the block ends and is removed if it fails.

    A folder that was there is replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
