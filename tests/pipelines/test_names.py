import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipelines import modalities
from pipelines.errors import UnknownNameError
from pipelines.names import Name, OwnCodeError, load_module, load_object, own_files, with_whole_path

SHIPPED = {"double": lambda x: 2 * x, "half": lambda x: x / 2}

OWN = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass(frozen=True)
class Pair:
    left: int

def triple(x: int) -> int:
    return 3 * x

PAIR = Pair(7)
"""


def load(name: str):
    return load_object(name, kind="scaling", shipped=SHIPPED, of=types.FunctionType)


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "my_scalings.py"
    file.write_text(OWN)
    return file


def test_a_name_is_a_shipped_one_or_one_in_a_users_file_or_module(own, monkeypatch):
    assert load("double")(5) == 10
    assert load(f"{own}:triple")(5) == 15
    monkeypatch.syspath_prepend(own.parent)
    assert load("my_scalings:triple")(5) == 15


def test_wrong_names_are_answered_with_the_nearest(own):
    with pytest.raises(UnknownNameError, match="no scaling 'doubel'; nearest: double"):
        load("doubel")
    with pytest.raises(UnknownNameError, match=r"my_scalings\.py 'tripel'; nearest: triple"):
        load(f"{own}:tripel")


def test_what_cannot_be_used_is_refused_in_one_line(own):
    with pytest.raises(OwnCodeError, match=r"no scaling file /gone/x\.py; put it there"):
        load("/gone/x.py:triple")
    with pytest.raises(OwnCodeError, match=r"no scaling module no_such_thing.*PYTHONPATH"):
        load("no_such_thing:triple")
    with pytest.raises(OwnCodeError, match="PAIR is a Pair; make it a function"):
        load(f"{own}:PAIR")
    broken = own.with_name("broken.py")
    broken.write_text("1 / 0")
    with pytest.raises(OwnCodeError, match=r"broken\.py does not run: ZeroDivisionError"):
        load(f"{broken}:triple")


def test_a_config_keeps_the_whole_path_whatever_directory_it_is_read_in(own, monkeypatch):
    class Config(BaseModel):
        scaling: Name

    monkeypatch.chdir(own.parent)
    config = Config(scaling="my_scalings.py:triple")
    assert config.scaling == f"{own}:triple"
    monkeypatch.chdir("/")
    assert load(Config.model_validate_json(config.model_dump_json()).scaling)(5) == 15
    assert Config(scaling="half").scaling == "half"


def test_a_file_that_is_not_in_the_working_directory_is_looked_for_as_modules_are(
    own, monkeypatch, tmp_path_factory
):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert with_whole_path("my_scalings.py:triple") == str(Path.cwd() / "my_scalings.py:triple")
    monkeypatch.syspath_prepend(own.parent)
    assert with_whole_path("my_scalings.py:triple") == f"{own}:triple"


def test_what_a_file_defines_is_pickled_by_its_place_and_found_in_another_process(own):
    from ray import cloudpickle

    pair = load_object(f"{own}:PAIR", kind="pair", shipped={}, of=object)
    assert pickle.loads(pickle.dumps(pair)) is not pair
    assert type(pickle.loads(pickle.dumps(pair))) is type(pair)
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read())(5))"
    output = subprocess.run(
        [sys.executable, "-P", "-c", code],
        input=cloudpickle.dumps(load(f"{own}:triple")),
        env={**os.environ, "PYTHONPATH": str(Path(modalities.__file__).parents[2])},
        cwd="/",
        capture_output=True,
        check=True,
    )
    assert output.stdout == b"15\n"


def test_a_module_is_a_shipped_one_or_a_users_file_with_what_its_kind_needs(own):
    def module(name):
        return load_module(name, kind="modality", package=modalities, needs=("triple",))

    assert module("text").__name__ == "pipelines.modalities.text"
    assert module(str(own)).triple(5) == 15
    with pytest.raises(UnknownNameError, match="no modality 'texd'; nearest: text"):
        module("texd")
    own.with_name("empty.py").write_text("")
    with pytest.raises(OwnCodeError, match=r"empty\.py defines no triple"):
        module(str(own.with_name("empty.py")))


def test_own_files_are_found_in_a_configs_plain_data():
    data = {"a": ["/x/my.py:f", {"/x/nets.py": 3}], "b": "cross_entropy", "c": "see /x/other.py"}
    assert own_files(data) == {Path("/x/my.py"), Path("/x/nets.py")}
