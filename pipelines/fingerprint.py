"""Fingerprints: what decides the contents of a built split, so that a rebuild knows what is stale.

Files count by path, size and time of change; code by its syntax tree, so that comments, layout and
docstrings may change freely.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import json
from types import ModuleType

from pydantic import BaseModel

from pipelines import modalities, readers, writer
from pipelines.task import Task

ROW_MODULES = ("pipelines.modalities.", "pipelines.moments", "pipelines.vocabulary")


def split_fingerprint(
    task: Task,
    *,
    root: str,
    train_root: str | None = None,
    layout: BaseModel,
    vocabulary: str | None,
) -> str:
    """Of a split's shards.

    Args:
        task: its source, features and buckets count; how it is trained does not.
        root: the split's folder.
        train_root: that of the training split, where mean and deviation are measured there.
        layout: settings that cut the source into shards and row groups.
        vocabulary: digest of the vocabulary, where the task has text.
    """
    return digest_of(
        task.bucket_bounds,
        sides_state(task),
        source_state(task, root=root),
        source_state(task, root=train_root) if train_root else None,
        code_digest(writer),
        layout,
        vocabulary,
    )


def sides_state(task: Task) -> str:
    """Of a task's features and the code of their row functions."""
    code = [code_digest(modalities.load(f.modality)) for f in (task.inputs, task.targets)]
    return digest_of(task.inputs.as_asked(), task.targets.as_asked(), code)


def source_state(task: Task, *, root: str) -> str:
    """Of a split's files and the code that reads them."""
    files = readers.source_digest(task.source, root=root)
    return digest_of(files, task.source, code_digest(readers))


def digest_of(*parts: object) -> str:
    """SHA-256 of values as JSON."""
    shown = [p.model_dump_json() if isinstance(p, BaseModel) else json.dumps(p) for p in parts]
    return hashlib.sha256("\n".join(shown).encode()).hexdigest()


def code_digest(module: ModuleType) -> str:
    """Of a module's code, and that of the modalities and the vocabulary that it imports from."""
    return _code_digest(module.__name__)


@functools.cache
def _code_digest(name: str) -> str:
    seen: dict[str, ModuleType] = {}
    waiting = [importlib.import_module(name)]
    while waiting:
        current = waiting.pop()
        if current.__name__ not in seen:
            seen[current.__name__] = current
            waiting += _row_modules(current)
    return digest_of(*(syntax(inspect.getsource(seen[name])) for name in sorted(seen)))


def _row_modules(module: ModuleType) -> list[ModuleType]:
    """Modules of row functions that a module imports from."""
    values = vars(module).values()
    names = {v.__name__ if isinstance(v, ModuleType) else _home(v) for v in values}
    return [importlib.import_module(name) for name in names if name.startswith(ROW_MODULES)]


def _home(value: object) -> str:
    home = getattr(value, "__module__", None)
    return home if isinstance(home, str) else ""


def syntax(source: str) -> str:
    """A source text without what does not run: comments, layout, docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case (
                ast.Module(body=[ast.Expr(value=ast.Constant()), *_])
                | ast.ClassDef(body=[ast.Expr(value=ast.Constant()), *_])
                | ast.FunctionDef(body=[ast.Expr(value=ast.Constant()), *_])
            ):
                node.body[0] = ast.Pass()
    return ast.dump(tree)
