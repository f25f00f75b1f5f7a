"""Frozen parameters under every engine: not a bit of them moves, and a resumed run is the same."""

from pathlib import Path

import pytest
import torch

from mmtrain.engines import EngineConfig, build_engine
from tests.mmtrain.engines.test_deepspeed import run_group
from tests.mmtrain.engines.toy import ADAM, ToyModel, toy_model, train

LAYOUTS = ("zero0", "zero1", "zero3", "zero2_ep2", "zero2_bf16", "zero3_bf16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("frozen")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, dict]:
    """Two processes train the heads alone for 12 steps, with a checkpoint after 6."""
    jobs = [f"frozen_save,{layout},{folder / layout}" for layout in LAYOUTS]
    seen = run_group(folder / "two", world_size=2, jobs=jobs)[0]
    return dict(zip(LAYOUTS, seen.values(), strict=True))


@pytest.fixture(scope="module")
def resumed(folder: Path, two: dict) -> dict[str, dict]:
    jobs = [f"frozen_resume,{layout},{folder / layout}" for layout in LAYOUTS]
    seen = run_group(folder / "resumed", world_size=2, jobs=jobs)[0]
    return dict(zip(LAYOUTS, seen.values(), strict=True))


def frozen_model() -> ToyModel:
    model = toy_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("heads."))
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frozen_weights_stay_in_full_precision_and_the_heads_learn(two, layout):
    drawn = {name: value.flatten().tolist() for name, value in toy_model().state_dict().items()}
    seen = two[layout]
    assert seen["weights"].keys() == drawn.keys()
    for name, value in seen["weights"].items():
        if name.startswith("heads."):
            assert value != seen["before"][name], name
        else:
            assert value == drawn[name], name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_so_they_do_under_the_plain_engine(precision):
    model = frozen_model()
    drawn = {name: value.clone() for name, value in model.state_dict().items()}
    config = EngineConfig(name="torch", precision=precision)
    engine = build_engine(config, model=model, optimizer=ADAM)
    train(engine, first=0, last=4)
    for name, value in engine.model_state().items():
        assert torch.equal(value, drawn[name]) != name.startswith("heads."), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_equals_straight(two, resumed, layout):
    assert resumed[layout]["trace"] == two[layout]["trace"]
    assert resumed[layout]["weights"] == two[layout]["weights"]
