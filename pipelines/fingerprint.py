"""Fingerprints: what decides the contents of a built split, so that a rebuild knows what is stale.

Files count by path, size and time of change; code by its syntax tree, so that comments, layout and
docstrings may change freely. A user's own modality or format counts by all of its file.
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
from pipelines.task import Source, Task

# Code that was rewritten and builds the same bytes: its digest, and the one that it goes by, so
# that nobody needs to build again. Of Python 3.11; a line is dead when its code changes again.
SAME_BYTES: dict[str, str] = {
    # the ten modalities by name, then readers and writer
    "451be9c0be99317c": "ab2e017857efdc7d5766f16c64186a10bbd5d6ebcde0f57715870cb2d4b520a0",
    "4d0e3daa91cfa3fc": "07b818a14b6c3aaba72bbc594570d83b28d7888dd0c1605684bf27fa247802cf",
    "7b3a97a84427d724": "9f85ed0c48afbf307e24292b27a54878569acccd11f94b945d9aeb467d8e35f4",
    "0d7e1cf0fdd266fe": "05307998ae7d84170f4db26c9723d15992976ffaf98e2139397f19ba7c008963",
    "0ed01af7e88eedfb": "dc84601758954c4c1316d757fbab0584a9fe84ea80eeaae9ca947d89bcea3093",
    "bb0c20ae6562249c": "b690d21faa1dc1425ff76fe436215e32660365d16ff8da13fba4e9cd3cf96b18",
    "90bdfc1d32dfc59a": "824a71ae2a2d91620b5780f2e1a2dbe12c6e01e5c056bf557cd63a71225d741d",
    "c16a185df5b06f87": "27994bf75b36c3d9e67c8610b3b19b5c9f28c629df4546d3de22473b03a60dc9",
    "233419d7bcfd62aa": "31fa2c15ad73df2c3ed1526ec72245f500b868d92f02088a5f7fbb9d1a0a68d3",
    "5229ab1e23b31114": "b4e8fef02c212c8eabe568a54a666d1d4008dedc1d306256b4da2d49cf1f5e65",
    "4501ffcf40d35f84": "3fdff28c35dd7d5b429bb7994fcf777304de204092941d447f530c777d949546",
    "54a0a741f85c3111": "d4273620f4a870cc871851fae283f1bdbf8cbe27f84cb194ab23272f93c21543",
}

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
    return digest_of(files, task.source, code_digest(readers), *own_format(task.source))


def own_format(source: Source) -> list[str]:
    """Digest of the file that defines the source's format; nothing where the format is shipped."""
    home = readers.format_of(source).read.__module__
    return [] if home == readers.__name__ else [_code_digest(home)]


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
    digest = digest_of(*(syntax(inspect.getsource(seen[name])) for name in sorted(seen)))
    return SAME_BYTES.get(digest[:16], digest)


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
            case _:
                pass
    return ast.dump(tree)
