"""Logging of this process as it was, after a test that sets it up as a command does."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mmtrain.process import logs


@contextmanager
def logs_kept() -> Iterator[None]:
    names = (*logs.OURS, *logs.CHATTY)
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        yield
    finally:
        logging.getLogger().removeHandler(logs._stderr)
        logs._stderr = type(logs._stderr)()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
