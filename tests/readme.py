"""What the READMEs say, as data: their commands, the files they name, the tree of rooms.

python -m tests.readme    draws the tree in mmtrain/README.md anew
"""

import ast
import re
import shlex
from pathlib import Path

from tests.test_architecture import ORDER, ROOT, SAME_FLOOR

READMES = (
    "README.md",
    "pipelines/README.md",
    "mmtrain/README.md",
    "tests/benchmarks/README.md",
)
_MARKS = "<!-- rooms -->", "<!-- /rooms -->"


def tree() -> str:
    """The rooms from the roof to the ground, each with the first sentence of its docstring."""
    beside = {floor: name for name, floor in SAME_FLOOR.items()}
    rooms = [name for floor in ORDER for name in (floor, beside.get(floor)) if name]
    lines = [f"{name:<12}{_purpose(name)}" for name in reversed(rooms) if name != "__main__"]
    return "\n".join(["```", *lines, "```"])


def _purpose(room: str) -> str:
    package = ROOT / "mmtrain" / room / "__init__.py"
    path = package if package.exists() else ROOT / "mmtrain" / f"{room}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\.)\s", text.replace("\n", " "), maxsplit=1)[0]


def drawn_tree() -> str:
    """The tree as it stands in mmtrain/README.md."""
    text = (ROOT / "mmtrain/README.md").read_text(encoding="utf-8")
    return text.partition(_MARKS[0])[2].partition(_MARKS[1])[0].strip()


def commands(readme: str) -> list[list[str]]:
    """Words of each command of a README: lines that begin with "$" in its console blocks."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]


def named_files(readme: str) -> set[str]:
    """Paths of the project that a README names in backticks."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    pattern = r"`((?:pipelines|mmtrain|tests|cluster|k8s)/[\w./-]*)`"
    return set(re.findall(pattern, text))


def main() -> None:
    """Draws the tree."""
    path: Path = ROOT / "mmtrain/README.md"
    head, _, rest = path.read_text(encoding="utf-8").partition(_MARKS[0])
    tail = rest.partition(_MARKS[1])[2]
    path.write_text(f"{head}{_MARKS[0]}\n{tree()}\n{_MARKS[1]}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
