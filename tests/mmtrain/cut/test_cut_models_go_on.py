"""A transformer that was cut is an ordinary model: it is saved, loaded, started from, trained."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmtrain.bundle import BundleTask, bundle_task, save_bundle
from mmtrain.cut.slicing import cut
from mmtrain.engines import EngineConfig, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.engines.ranks import seed_step
from mmtrain.models.model import MultiTaskModel, build_model
from mmtrain.start.initialize import load_start, plan_start
from mmtrain.start.source import read_source
from mmtrain.start.trained import Trained
from mmtrain.start.vit import InitError
from tests.mmtrain import example_bundle, example_polyvit
from tests.mmtrain.example_corpus import TASKS, example_vocabulary

torch.set_num_threads(1)


def half(model: MultiTaskModel) -> MultiTaskModel:
    """Cut to every second unit."""
    kept = {group.name: torch.arange(group.size) % 2 == 1 for group in model.prunable_units()}
    return cut(model, kept)


def cut_model(family: str) -> MultiTaskModel:
    if family == "multimodel":
        return half(example_bundle.example_model())
    return half(example_polyvit.small_polyvit(num_adapter_blocks=1))


def saved(model: MultiTaskModel, folder: Path) -> Path:
    if model.config.family == "polyvit":
        tasks, vocabulary = example_polyvit.bundle_tasks(), None
    else:
        tasks, vocabulary = bundle_tasks(), example_vocabulary()
    return save_bundle(
        folder, model=model.config, tasks=tasks, state=model.state_dict(), vocabulary=vocabulary,
        lineage=example_bundle.LINEAGE,
    )  # fmt: skip


def bundle_tasks() -> dict[str, BundleTask]:
    specs = example_bundle.example_specs()
    return {name: bundle_task(task, spec=specs[name]) for name, task in TASKS.items()}


def start(model: MultiTaskModel, folder: Path) -> MultiTaskModel:
    source = read_source(str(folder))
    assert isinstance(source, Trained)
    planned = plan_start(
        model,
        source,
        targets={name: task.targets for name, task in source.card.tasks.items()},
        vocabulary=source.vocabulary,
        inflation="central_frame",
    )
    assert planned.fresh == {}
    load_start(model, planned)
    return model


@pytest.mark.parametrize("family", ["polyvit", "multimodel"])
def test_training_starts_from_a_cut_model_to_the_last_bit(family, tmp_path):
    small = cut_model(family)
    saved(small, tmp_path / "bundle")
    drawn = build_model(small.config, small.tasks.values(), seed=9)
    found = start(drawn, tmp_path).state_dict()
    assert found.keys() == small.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in small.state_dict().items())


@pytest.mark.parametrize("family", ["polyvit", "multimodel"])
def test_a_whole_model_does_not_start_from_a_cut_one(family, tmp_path):
    small = cut_model(family)
    saved(small, tmp_path / "bundle")
    body = small.config.body.model_copy(update={"units": {}})
    nets = {
        net: settings.model_copy(update={"units": {}}) if hasattr(settings, "units") else settings
        for net, settings in small.config.nets.items()
    }
    config = small.config.model_copy(update={"body": body, "nets": nets})
    with pytest.raises(InitError, match=r"in the weights|has shape|the weights have"):
        start(build_model(config, small.tasks.values(), seed=9), tmp_path)


def test_a_cut_model_learns_on_and_keeps_its_choice_of_units():
    small = cut_model("multimodel").train()
    torch.manual_seed(0)  # of dropout and the gate's noise, whatever tests ran before
    before = numbers_of(small)
    engine = build_engine(EngineConfig(name="torch"), model=small, optimizer=OptimizerConfig())
    inputs = torch.randint(0, 256, (6, 8, 8, 1), generator=torch.Generator().manual_seed(0))
    lengths, losses = torch.full((6,), 8), []
    for _ in range(6):
        seed_step(0, 0, 0)  # the same noise of the gate at every step, whatever ran before
        outputs = engine.forward(task="shades", inputs=inputs, input_lengths=lengths, targets=None)
        loss = torch.nn.functional.cross_entropy(outputs.logits, torch.arange(6) % 2)
        engine.backward(loss)
        engine.step(
            small.owners("shades"), learning_rates=dict.fromkeys(small.owners("shades"), 1e-2)
        )
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert len(before) > 10
    assert_close(numbers_of(small), before, rtol=0, atol=0)
    assert before.keys() <= engine.model_state().keys()


def numbers_of(model: MultiTaskModel) -> dict[str, Tensor]:
    state = model.state_dict().items()
    return {name: value.clone() for name, value in state if name.endswith("choice.numbers")}
