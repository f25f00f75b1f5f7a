"""The READMEs are true: files that they name, commands that they give, the tree of rooms."""

import pytest
import typer

from mmtrain.cli import app
from tests.readme import READMES, ROOT, commands, drawn_tree, named_files, tree


def test_tree_of_rooms_is_that_of_the_order():
    assert drawn_tree() == tree(), "draw it anew: python -m tests.readme"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 300


@pytest.mark.parametrize("readme", READMES)
def test_files_that_a_readme_names_are_there(readme):
    assert [name for name in sorted(named_files(readme)) if not (ROOT / name).exists()] == []


MMTRAIN = [
    words
    for readme in READMES
    for words in ([w for w in line if not w.startswith("MMTRAIN_")] for line in commands(readme))
    if words[:1] == ["mmtrain"]
]


@pytest.mark.parametrize("words", MMTRAIN, ids=" ".join)
def test_command_of_a_readme_is_one_of_ours_with_options_that_it_has(words):
    command = typer.main.get_command(app)
    arguments = words[1:]
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context(words[1], arguments)


def test_other_commands_of_the_readmes_are_programs_that_the_project_has():
    others = {words[0] for readme in READMES for words in commands(readme) if "=" not in words[0]}
    known = {"mmtrain", "make", "python", "mlflow", "curl", "export", ".", "ray"}
    assert others <= known
    makefile = (ROOT / "Makefile").read_text()
    for readme in READMES:
        for words in commands(readme):
            if words[0] == "make":
                assert f"\n{words[1]}:" in makefile
