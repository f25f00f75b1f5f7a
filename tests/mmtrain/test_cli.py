"""The command line as a user meets it: one line for a mistake, a non-zero exit, no traceback."""

import json
import subprocess
import sys
from typing import Any

import pytest
import typer

from tests.mmtrain.example_bundle import example_bundle, example_specs
from tests.waiting import BUSY_S


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mmtrain", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=BUSY_S, **options)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "quikstart"], "quickstart"),
        (["train", "debug", "--set", "num_step=3"], "num_steps"),
        (["train", "debug", "--set", "num_steps=many"], "num_steps"),
        (["train", "debug", "--set", "num_steps"], "dotted.field=value"),
        (["train", "debug", "--task", "parsin"], "parsing"),
        (["train", "nothing.json"], "nothing.json"),
        (["list", "recipe"], "recipes"),
        (["evaluate", "no/such/run"], "no bundle at no/such/run"),
        (["extract", "no/such/run", "--task", "a", "--out", "b"], "no bundle at no/such/run"),
        (["train"], "--init-from"),
        (["train", "--resume", "--out", "no/run"], "no/run/recipe.json"),
        (["train", "--init-from", "no/such/run"], "no bundle at no/such/run"),
        (["predict", "no/such/run", "--task", "parsing", "x"], "no bundle at no/such/run"),
    ],
)
def test_mistake_is_one_clear_line_and_status_2(tmp_path, arguments, says):
    ended = run(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_corpus_that_is_not_built_is_refused_before_anything_starts(tmp_path):
    ended = run("train", "debug", "--data", str(tmp_path / "none"), cwd=tmp_path)
    assert ended.returncode == 2
    assert "is not built" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_unknown_option_is_refused():
    ended = run("train", "debug", "--step", "3")
    assert ended.returncode == 2
    assert "No such option" in ended.stderr


@pytest.mark.parametrize(
    ("before", "after", "shows"),
    [((), (), False), (("-v",), (), True), ((), ("--verbose",), True), ((), ("-q",), False)],
)
def test_any_command_says_what_it_does_when_asked_before_or_after_its_name(
    tmp_path, before, after, shows
):
    example_bundle(tmp_path / "bundle")
    task = next(iter(example_specs()))
    words = ("extract", "bundle", "--task", task, "--out", "small", "--json")
    ended = run(*before, *words, *after, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["tasks"] == [task]
    assert (f"info: extracted {task} of " in ended.stderr) == shows


def test_all_commands_have_verbose_and_quiet():
    from mmtrain.cli import app

    def check(command: Any) -> None:
        names = {parameter.name for parameter in command.params}
        assert {"verbose", "quiet"} <= names or hasattr(command, "commands"), command.name
        for inner in getattr(command, "commands", {}).values():
            check(inner)

    check(typer.main.get_command(app))
    ended = run("list", "tasks", "--verbose", "--quiet")
    assert ended.returncode == 2
    assert "exclude each other" in ended.stderr


def test_help_says_on_one_screen_what_to_do_first():
    ended = run("--help")
    assert ended.returncode == 0
    assert "mmtrain quickstart" in ended.stdout
    assert len(ended.stdout.splitlines()) <= 45


def test_list_prints_json_for_programs():
    recipes = json.loads(run("list", "recipes", "--json").stdout)
    assert {"quickstart", "multimodel_8", "debug"} <= set(recipes)
    tasks = json.loads(run("list", "tasks", "--json").stdout)
    assert len(tasks) >= 8
