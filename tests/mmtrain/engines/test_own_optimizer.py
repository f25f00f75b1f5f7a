"""An optimizer of a user's own file: trains, is saved by the names of its states, goes on equal.

Under ZeRO and offload it runs in test_deepspeed.py, as the shipped ones do.
"""

import pytest
import torch

from mmtrain import checkpoint
from mmtrain.checkpoint import Progress
from mmtrain.engines import EngineConfig, EngineError, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.step.rates import RateError, check_decays
from pipelines.errors import UnknownNameError
from pipelines.names import OwnCodeError
from tests.mmtrain.engines.toy import LION, toy_model, train
from tests.pipelines.toy_corpus import toy_task

NORMED = LION.model_copy(update={"name": LION.name.replace(":lion", ":normed")})
PLAIN = EngineConfig(name="torch")


def test_it_steps_as_its_equation_says():
    engine = build_engine(PLAIN, model=toy_model(), optimizer=LION)
    before = engine.model_state()
    train(engine, first=0, last=1)
    for name, value in engine.model_state().items():
        if "blue" in name or name == "seen":  # idle
            assert torch.equal(value, before[name])
        else:
            decayed = before[name] * (1 - 0.01 * 0.01 if value.ndim > 1 else 1)
            assert (value - decayed).abs().max().item() == pytest.approx(0.01, abs=1e-6), name


def test_resumed_it_equals_straight(tmp_path):
    straight = build_engine(PLAIN, model=toy_model(), optimizer=LION)
    train(straight, first=0, last=4)
    ref = checkpoint.save(str(tmp_path), engine=straight, progress=Progress(step=4))
    train(straight, first=4, last=8)
    resumed = build_engine(PLAIN, model=toy_model(seed=5), optimizer=LION)
    checkpoint.restore(ref, engine=resumed)
    train(resumed, first=4, last=8)
    for name, value in straight.model_state().items():
        assert torch.equal(resumed.model_state()[name], value), name
    for old, new in zip(straight.parameter_states(), resumed.parameter_states(), strict=True):
        assert old.tensors.keys() <= {"weight", "average"}
        assert old.step == new.step
        assert all(torch.equal(new.tensors[key], value) for key, value in old.tensors.items())


def test_one_that_needs_whole_parameters_runs_where_they_are_whole():
    train(build_engine(PLAIN, model=toy_model(), optimizer=NORMED), first=0, last=2)
    with pytest.raises(EngineError, match=r"lion\.py:normed steps whole.*set engine\.zero_stage=0"):
        build_engine(EngineConfig(zero_stage=2), model=toy_model(), optimizer=NORMED)


def test_a_task_sets_the_decays_that_it_has():
    check_decays(LION, toy_task("a", betas=(0.9, 0.95)))
    with pytest.raises(RateError, match=r"lion has betas, not momentum 0\.5"):
        check_decays(LION, toy_task("a", momentum=0.5))
    with pytest.raises(RateError, match="normed has no decays, not betas"):
        check_decays(NORMED, toy_task("a", betas=(0.9, 0.95)))


def test_a_wrong_name_is_refused_at_once_and_a_lost_file_where_it_is_used():
    with pytest.raises(UnknownNameError, match="no optimizer 'adam'; nearest: adamw"):
        OptimizerConfig(name="adam")
    lost = OptimizerConfig(name="/gone/lion.py:lion")
    with pytest.raises(OwnCodeError, match=r"no optimizer file /gone/lion\.py"):
        build_engine(PLAIN, model=toy_model(), optimizer=lost)
