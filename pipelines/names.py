"""Names of what can be added: a shipped one's, or where a user's own stands.

An object is named `focal`, `my_losses.py:focal` or `my_package.losses:focal`; a whole module is
named `polyvit`, `my_family.py` or `my_package.my_family`. Configs hold the names, so a run's JSON
does, and every process looks them up itself. A user's file is imported as a submodule of this one,
so that what it defines can be pickled: any process that sees the file finds it again.
"""

import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator

from pipelines.errors import MMTrainError, UnknownNameError

T = TypeVar("T")

__path__: list[str] = []  # makes it a package to Python: files are its submodules


class OwnCodeError(MMTrainError):
    """A user's own file or module, or what it defines, cannot be used."""


def with_whole_path(name: str) -> str:
    """The name with its file's whole path, so that it holds in a process that runs elsewhere.

    A relative path begins at the working directory or, where there is no such file, at a folder
    of `sys.path`, as with modules. A file that is not there is refused when it is loaded.
    """
    own = re.fullmatch(r"(.*\.py)(:.*)?", name)
    if not own:
        return name
    file = Path(own[1]).expanduser()
    places = (Path(), *map(Path, sys.path))
    found = next((place / file for place in places if (place / file).is_file()), file)
    return f"{found.absolute()}{own[2] or ''}"


Name = Annotated[str, AfterValidator(with_whole_path)]  # of a field that names what can be added


def load_object(name: str, *, kind: str, shipped: Mapping[str, T], of: type[T]) -> T:
    """What a name stands for: one of `shipped`, or the user's own of `FILE.py:NAME`, `MODULE:NAME`.

    Args:
        name: as a config or a command has it.
        kind: what it names, for the messages, such as "loss".
        shipped: those of the package by name.
        of: the class that it must be an instance of.

    Raises:
        UnknownNameError: nothing has the name; tells the nearest.
        OwnCodeError: the user's file is gone or fails, or it is of another class.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon:
        if name not in shipped:
            raise UnknownNameError(kind, name, tuple(sorted(shipped)))
        return shipped[name]
    values = vars(_own_module(place, kind=kind))
    if attribute not in values:
        fitting = (key for key, value in values.items() if isinstance(value, of) and key[0] != "_")
        raise UnknownNameError(f"{kind} in {place}", attribute, tuple(sorted(fitting)))
    if not isinstance(values[attribute], of):
        right = f"{of.__module__}.{of.__qualname__}".removeprefix("builtins.")
        wrong = type(values[attribute]).__name__
        raise OwnCodeError(f"{kind} {name} is a {wrong}; make it a {right}")
    return values[attribute]


def load_module(name: str, *, kind: str, package: ModuleType, needs: tuple[str, ...]) -> ModuleType:
    """The module that a name stands for: of `package`, or the user's own, `FILE.py` or `A.B`.

    Args:
        name: as a config has it.
        kind: what it names, for the messages.
        package: holds the shipped ones.
        needs: what a user's own must define.

    Raises:
        UnknownNameError: the package has no such module; tells the nearest.
        OwnCodeError: the user's file is gone or fails, or lacks one of `needs`.
    """
    if "." not in name:
        shipped = module_names(package)
        if name not in shipped:
            raise UnknownNameError(kind, name, shipped)
        return importlib.import_module(f"{package.__name__}.{name}")
    module = _own_module(name, kind=kind)
    missing = [need for need in needs if not hasattr(module, need)]
    if missing:
        raise OwnCodeError(f"{kind} {name} defines no {missing[0]}; {kind} modules need {needs}")
    return module


def module_names(package: ModuleType) -> tuple[str, ...]:
    """Names of a package's modules, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def own_files(value: Any) -> set[Path]:
    """The users' files that a config's plain data (as of `model_dump`) names, at any depth."""
    match value:
        case str():
            file = re.match(r"(/.*\.py)(:\w+)?$", value)
            return {Path(file[1])} if file else set()
        case Mapping():
            return set().union(*map(own_files, [*value.keys(), *value.values()]))
        case list() | tuple():
            return set().union(*map(own_files, value))
        case _:
            return set()


def _own_module(place: str, *, kind: str) -> ModuleType:
    """A user's module, by its file or by the name that Python imports it under."""
    name = place
    if place.endswith(".py"):
        file = Path(with_whole_path(place))
        if not file.is_file():
            raise OwnCodeError(f"no {kind} file {file}; put it there, or name where it is now")
        name = f"{__name__}.{_quoted(str(file))}"
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's code raises is the user's to mend
        if isinstance(error, ModuleNotFoundError) and error.name and name.startswith(error.name):
            remedy = "install it or put its folder on PYTHONPATH"
            raise OwnCodeError(f"no {kind} module {name}; {remedy}, or give FILE.py") from None
        raise OwnCodeError(f"{place} does not run: {type(error).__name__}: {error}") from error


def _quoted(path: str) -> str:
    """A path as part of a module's name: `/a/my.py` is `_2f_a_2f_my_2e_py`."""
    return re.sub(r"[^A-Za-z0-9]", lambda character: f"_{ord(character[0]):x}_", path)


class _FileFinder:
    """Python's import of a submodule of this module: the file whose path the name quotes."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{__name__}."):
            return None
        quoted = name.removeprefix(f"{__name__}.")
        file = re.sub("_([0-9a-f]+)_", lambda code: chr(int(code[1], 16)), quoted)
        return importlib.util.spec_from_file_location(name, file)


sys.meta_path.append(_FileFinder)
