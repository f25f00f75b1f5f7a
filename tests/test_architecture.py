"""The house's rules, read from the imports: who may import what, and in which direction."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("pipelines/**/*.py"), *ROOT.glob("mmtrain/**/*.py")])

# Rooms of mmtrain from the ground to the roof: an import points down this list and nowhere else,
# those inside functions counted. mmtrain/README.md draws its tree from it.
ORDER = (
    "files", "process", "cluster", "layers", "modalities", "models", "losses", "engines",
    "checkpoint", "masks", "recipe", "bundle", "store", "cut", "predict", "evaluate", "registry",
    "start", "step", "report", "run", "train", "derive", "finish", "tuning", "planning",
    "serving", "jobs", "doctor", "commands", "cli", "__main__",
)  # fmt: skip
SAME_FLOOR = {"recipes": "recipe"}  # a recipe is found by its name, which a module of recipes has

# framework -> the only files that may import it; a folder stands for all in it
WALLS = {
    "ray": {
        "pipelines/readers.py", "pipelines/build.py", "pipelines/stream.py",
        "mmtrain/cluster.py", "mmtrain/run/failures.py", "mmtrain/train.py",
        "mmtrain/tuning/tune.py", "mmtrain/serving/serve.py", "mmtrain/jobs/client.py",
        "mmtrain/predict/batch.py",
    },
    "deepspeed": {"mmtrain/engines/deepspeed.py"},
    "mlflow": {"mmtrain/store"},
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


@pytest.mark.parametrize("framework", sorted(WALLS))
def test_framework_is_imported_only_by_the_files_that_wrap_it(framework):
    outside = [
        str(path.relative_to(ROOT))
        for path in FILES
        if any(name.split(".")[0] == framework for name in imported_modules(path))
        and not any(path.is_relative_to(ROOT / wall) for wall in WALLS[framework])
    ]
    assert outside == []


def room_of(module: str) -> str:
    name = module.split(".")[1] if "." in module else ""
    return SAME_FLOOR.get(name, name)


def test_imports_point_down_the_order_of_rooms():
    modules = {module_name(path): path for path in FILES if path.is_relative_to(ROOT / "mmtrain")}
    upward = [
        f"{name} imports {found}"
        for name, path in modules.items()
        for found in sorted(imported_modules(path) & modules.keys())
        if room_of(found) and ORDER.index(room_of(found)) > ORDER.index(room_of(name))
    ]
    assert upward == []


def test_rooms_are_two_dozen_and_hold_all_but_eight_files():
    rooms = {path.name for path in (ROOT / "mmtrain").iterdir() if (path / "__init__.py").exists()}
    files = {path.stem for path in (ROOT / "mmtrain").glob("*.py")} - {"__init__"}
    assert rooms | files == {*ORDER, *SAME_FLOOR}
    assert len(files) < 8


def test_pipelines_import_neither_torch_nor_mmtrain():
    for path in ROOT.glob("pipelines/**/*.py"):
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert not roots & {"torch", "mmtrain"}, path


def test_makers_of_demonstration_corpora_are_imported_by_nothing_of_the_data_plane():
    for path in FILES:
        if not path.is_relative_to(ROOT / "pipelines/corpora"):
            imported = imported_modules(path)
            assert not any(name.startswith("pipelines.corpora") for name in imported), path


def test_no_import_ring():
    modules = {module_name(path): path for path in FILES}
    graph = {
        name: {found for found in imported_modules(path) if found in modules and found != name}
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


# What has no like: only these files change what belongs to the whole process.
ALONE = {
    r"\.setLevel\(|basicConfig|\.(add|remove)Handler\(": {
        "mmtrain/process/logs.py",
        "pipelines/build.py",  # Ray Data's own logger: the data plane works without mmtrain
    },
    r"os\.environ\[[^\]]+\] = |environ\.(setdefault|update|pop)\(|putenv": {
        "mmtrain/process/environment.py",
    },
    r"ray\.(init|shutdown)\(": {
        "mmtrain/cluster.py",
        "pipelines/build.py",  # joins nothing where mmtrain has joined a cluster
    },
}


@pytest.mark.parametrize("pattern", ALONE)
def test_logging_environment_and_ray_are_each_set_in_one_place(pattern):
    found = {
        str(path.relative_to(ROOT))
        for path in FILES
        if re.search(pattern, path.read_text(encoding="utf-8"))
    }
    assert found == ALONE[pattern]


def test_no_file_is_over_350_lines():
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in FILES}
    assert {name for name, length in lengths.items() if length > 350} == set()


def test_no_function_but_the_main_loop_is_over_60_lines():
    long = {
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > 60
    }
    assert long <= {"mmtrain/train.py: train_worker"}


# Plug-in modules have classes of these names by convention, one each.
CONVENTIONAL = {"Config", "Body", "BodyError", "Feature", "Input", "Output"}
# Stand twice today: may only shrink.
TWICE = {"Piece"}


def test_class_names_are_unique():
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.lstrip("_") not in CONVENTIONAL:
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert {name: files for name, files in twice.items() if name not in TWICE} == {}


def test_every_module_says_its_purpose():
    silent = [path for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_what_code_reads_beside_itself_is_installed_with_it():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    data = settings["tool"]["setuptools"]["package-data"]
    installed = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    beside = {
        path
        for package in ("mmtrain", "pipelines")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
    }
    assert beside
    assert beside - installed == set()
