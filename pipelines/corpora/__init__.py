"""Makers of the offline corpora: real input for every shipped task, without a download.

The name is the module: `pipelines/corpora/<maker>.py` defines

    make(folder, *, seed) -> None       writes the corpus's splits, as ordinary raw files

The same seed gives the same bytes. The folder appears whole or not at all. Splits are `train`,
`validation`, `test`, and for some `test_hard`; nothing stands in two of them. A task names its
maker; nothing of the data plane imports this room.
"""

import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path) -> Generator[Path]:
    """A folder to write in, which becomes `folder` when the block ends and is removed if it fails.

    A folder that was there is replaced.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
