import os
from contextlib import suppress

import pytest

from mmtrain.process.environment import environment, set_for_good


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    monkeypatch.setenv("MMTRAIN_SET", "user")
    monkeypatch.setenv("MMTRAIN_FREE", "")  # so that it is as it was at the end of the test
    monkeypatch.delenv("MMTRAIN_FREE")


def now() -> tuple[str | None, str | None]:
    return os.environ.get("MMTRAIN_SET"), os.environ.get("MMTRAIN_FREE")


@pytest.mark.parametrize(("overrides", "inside"), [(False, "user"), (True, "ours")])
def test_variables_are_set_within_and_the_user_s_stand_unless_overridden(overrides, inside):
    settings = {"MMTRAIN_SET": "ours", "MMTRAIN_FREE": "ours"}
    with environment(settings, overrides=overrides):
        assert now() == (inside, "ours")
    assert now() == ("user", None)
    with suppress(KeyError), environment(settings, overrides=overrides):
        raise KeyError
    assert now() == ("user", None)


def test_what_is_set_for_good_leaves_the_user_s_own():
    set_for_good({"MMTRAIN_SET": "ours", "MMTRAIN_FREE": "ours"})
    assert now() == ("user", "ours")
