"""The house's rules, read from the imports: who may import what, and in which direction."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("pipelines/**/*.py"), *ROOT.glob("mmtrain/**/*.py")])

# framework -> the only files that may import it
WALLS = {
    "ray": {
        "pipelines/readers.py", "pipelines/build.py", "pipelines/stream.py",
        "mmtrain/cluster.py", "mmtrain/failures.py", "mmtrain/train.py", "mmtrain/tune.py",
        "mmtrain/serving.py", "mmtrain/jobs.py", "mmtrain/batch_predict.py",
    },
    "deepspeed": {"mmtrain/engines/deepspeed.py"},
    "mlflow": {
        "mmtrain/mlflow_client.py", "mmtrain/delivery.py", "mmtrain/model_registry.py",
        "mmtrain/registry/versions.py", "mmtrain/registry/served_model.py",
    },
}  # fmt: skip


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def top_level_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


@pytest.mark.parametrize("framework", sorted(WALLS))
def test_framework_is_imported_only_by_the_files_that_wrap_it(framework):
    importers = {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(name.split(".")[0] == framework for name in imported_modules(path))
    }
    assert importers <= WALLS[framework]


def test_pipelines_import_neither_torch_nor_mmtrain():
    for path in ROOT.glob("pipelines/**/*.py"):
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert not roots & {"torch", "mmtrain"}, path


def test_no_import_ring():
    modules = {module_name(path): path for path in FILES}
    graph = {
        name: {found for found in top_level_imports(path) if found in modules and found != name}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for found in sorted(graph[name]):
                visit(found, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_main_loop_stays_short():
    tree = ast.parse((ROOT / "mmtrain/train.py").read_text(encoding="utf-8"))
    worker = next(
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "train_worker"
    )
    assert worker.end_lineno is not None
    assert worker.end_lineno - worker.lineno < 90


def test_every_module_says_its_purpose():
    silent = [path for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []
