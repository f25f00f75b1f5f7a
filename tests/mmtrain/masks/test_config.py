import pytest
from pydantic import ValidationError

from mmtrain.masks.config import PruningConfig

ONE = {"low": ("digit:0", "digit:1")}


def test_a_config_goes_to_json_and_back():
    config = PruningConfig(subtasks={**ONE, "all-else": ("speech", "names")}, gamma=0.3)
    assert PruningConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(("settings", "message"), [
    ({"subtasks": {}}, "at least 1 item"),
    ({"subtasks": {"low": ()}}, "subtask low is empty"),
    ({"subtasks": {"low digits": ("digit",)}}, "use letters, digits, '_' and '-'"),
    ({"subtasks": {"low": ("digit:0", "digit:0")}}, "low names an entry twice"),
    ({"subtasks": {"low": ("digit:0", "speech")}}, "low mixes digit:0, speech"),
    ({"subtasks": {"low": ("digit:0", "speech:0")}}, "split it"),
    ({"subtasks": ONE, "sigma": 0}, "greater than 0"),
    ({"subtasks": ONE, "gamma": -1}, "greater than or equal to 0"),
    ({"subtasks": ONE, "beta": float("inf")}, "finite"),
    ({"subtasks": ONE, "num_samples": 0}, "greater than or equal to 1"),
    ({"subtasks": ONE, "law": "random"}, "'stratified', 'uniform'"),
    ({"subtasks": ONE, "gama": 1}, "Extra inputs"),
    ({"subtasks": ONE, "law": "basis_only", "weighting": "importance"}, "never draws most unions"),
    ({"subtasks": {name: (name,) for name in "abcdefg"}, "law": "exact"}, "127 unions"),
])  # fmt: skip
def test_a_wrong_config_says_what_is_wrong(settings, message):
    with pytest.raises(ValidationError, match=message):
        PruningConfig(**settings)


def test_six_subtasks_may_be_enumerated():
    PruningConfig(subtasks={name: (name,) for name in "abcdef"}, law="exact")


def test_a_config_of_some_tasks_has_what_its_subtasks_have_of_them():
    config = PruningConfig(subtasks={**ONE, "both": ("digit", "speech"), "names": ("names",)})
    narrowed = config.only(["digit"])
    assert narrowed is not None
    assert narrowed.subtasks == {**ONE, "both": ("digit",)}
    assert config.only(["spare"]) is None
