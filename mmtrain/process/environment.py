"""The environment of this process, which those that it starts inherit, is changed here alone."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager


@contextmanager
def environment(settings: Mapping[str, str], *, overrides: bool = False) -> Generator[None]:
    """Within, these variables are set; afterwards they are as they were.

    Args:
        settings: values by name.
        overrides: they win over what the user has set; else the user's own stands.
    """
    before = {name: os.environ.get(name) for name in settings}
    changed = {name: settings[name] for name in settings if overrides or before[name] is None}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name in changed:
            os.environ.pop(name, None)
            if (value := before[name]) is not None:
                os.environ[name] = value


def set_for_good(settings: Mapping[str, str]) -> None:
    """Sets variables of a library that reads them at any time; the user's own stands."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)
