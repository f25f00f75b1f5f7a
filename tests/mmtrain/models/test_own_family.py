"""A model family of a user's own file: it trains, and its bundle opens again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmtrain
from mmtrain.bundle import bundle_task, save_bundle
from mmtrain.engines import EngineConfig, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.models.config import ModelConfig, TaskSpec
from mmtrain.models.model import ModelError, build_model
from mmtrain.predict.predictor import Predictor
from pipelines.errors import UnknownNameError
from pipelines.names import OwnCodeError
from tests.mmtrain.example_bundle import LINEAGE
from tests.mmtrain.example_corpus import TASKS, shade

OWN = '''
"""Two dense layers over every position."""
from dataclasses import replace
from pydantic import BaseModel, ConfigDict
from torch import nn

class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    model_dim: int = 16
    width: int = 8

class Body(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim, width = config.model_dim, config.width
        self.dense = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, dim))

    def parts(self, reads):
        return ("dense",)

    def encode(self, inputs):
        return replace(inputs, values_BSD=inputs.values_BSD + self.dense(inputs.values_BSD))
'''
SHADES = TaskSpec(name="shades", input_net="image", output_net="label", num_outputs=2)


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_family.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my_family.py"


def config_of(family: str) -> ModelConfig:
    nets = {"image": {"channels": 1}}
    return ModelConfig.model_validate({"family": family, "body": {"width": 12}, "nets": nets})


def trained_bundle(folder: Path) -> Path:
    """Bundle of a model that tells dark from light, of the family in the working directory."""
    model = build_model(config_of("my_family.py"), [SHADES], seed=0)
    engine = build_engine(EngineConfig(name="torch"), model=model, optimizer=OptimizerConfig())
    owners = model.owners("shades")
    assert "body/dense" in owners
    pictures = torch.stack([torch.full((16, 16, 1), level) for level in (10, 30, 200, 220)]).byte()
    losses = []
    for _ in range(10):
        lengths = torch.full((4,), 16)
        outputs = engine.forward(
            task="shades", inputs=pictures, input_lengths=lengths, targets=None
        )
        loss = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 0, 1, 1]))
        engine.backward(loss)
        losses.append(loss.item())
        engine.step(owners, learning_rates=dict.fromkeys(owners, 1e-2))
    assert losses[-1] < losses[0]
    return save_bundle(
        folder,
        model=model.config,
        tasks={"shades": bundle_task(TASKS["shades"], spec=SHADES)},
        state=engine.model_state(),
        vocabulary=None,
        lineage=LINEAGE,
    )


def test_a_family_of_a_users_own_file_trains_and_its_bundle_opens_in_another_process(own):
    bundle = trained_bundle(own.parent / "bundle")
    code = (
        "import sys; from mmtrain.predict.predictor import Predictor; "
        "answers = Predictor.load(sys.argv[1]).predict('shades', [sys.stdin.buffer.read()]); "
        "print(answers[0].scores)"
    )
    output = subprocess.run(
        [sys.executable, "-P", "-c", code, str(bundle)],
        input=shade(20),
        env={**os.environ, "PYTHONPATH": str(Path(mmtrain.__file__).parents[1])},
        cwd="/",
        capture_output=True,
        check=True,
    ).stdout
    (here,) = Predictor.load(bundle).predict("shades", [shade(20)])
    assert output.decode().strip() == str(here.scores)


def test_a_bundle_whose_family_is_gone_is_refused_in_one_line(own):
    bundle = trained_bundle(own.parent / "bundle")
    moved = own.rename(own.with_name("elsewhere.py"))
    with pytest.raises(OwnCodeError, match=r"no model family file .*my_family\.py; put it there"):
        Predictor.load(bundle)
    assert moved.exists()


def test_a_family_lacking_its_parts_or_misspelt_is_refused(own):
    own.with_name("half.py").write_text("class Config: ...\n")
    with pytest.raises(OwnCodeError, match=r"half\.py defines no Body"):
        config_of("half.py")
    with pytest.raises(UnknownNameError, match="no model family 'multimodle'; nearest: multimodel"):
        config_of("multimodle")
    text = SHADES.model_copy(update={"num_outputs": None})
    with pytest.raises(ModelError, match="decodes no sequences"):
        build_model(config_of("my_family.py"), [text], seed=0)
