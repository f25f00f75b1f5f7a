"""Every kind of input with every kind of target on every family: it trains, or is refused before.

Kinds and families are those of the packages' folders. What is not refused takes a step of training
on the longest batch that its features allow, and on one of lengths from the shortest to that.
"""

import contextlib
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmtrain.engines import EngineConfig, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.engines.ranks import Ranks
from mmtrain.evaluate import baselines, metrics
from mmtrain.models import multimodel, polyvit, resnet
from mmtrain.models.config import families
from mmtrain.models.fitting import FittingError
from mmtrain.models.model import ModelConfig
from mmtrain.recipe import Recipe
from mmtrain.run.components import build_objective
from mmtrain.run.model import recipe_model
from mmtrain.run.prepare import prepare_run
from mmtrain.step.passes import Passes
from mmtrain.step.rates import step_rates
from pipelines import modalities
from pipelines.batch import Batch
from pipelines.errors import CorpusError, MMTrainError
from pipelines.modalities import Feature
from pipelines.modalities.audio import AudioFeature
from pipelines.modalities.image import ImageFeature
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.labels import LabelsFeature
from pipelines.modalities.mask import MaskFeature
from pipelines.modalities.multilabel import MultiLabelFeature
from pipelines.modalities.numbers import BOX, NumbersFeature
from pipelines.modalities.text import TextFeature
from pipelines.modalities.tree import TreeFeature
from pipelines.modalities.video import VideoFeature
from pipelines.task import Source, Task
from pipelines.vocabulary import Vocabulary

torch.set_num_threads(1)

BODIES = {
    "multimodel": multimodel.Config(
        model_dim=16, num_heads=2, encoder_conv_blocks=1, encoder_attention_blocks=1,
        mixer_blocks=1, decoder_blocks=1, num_experts=2, active_experts=1, expert_dim=8,
    ),
    "polyvit": polyvit.Config(model_dim=16, num_layers=1, num_heads=2, mlp_dim=16),
    "resnet": resnet.Config(depth=4, widths=(4,)),
}  # fmt: skip
FEATURES: dict[str, Feature] = {
    "text": TextFeature(max_tokens=70),  # longer than the positions of a text net unless asked
    "tree": TreeFeature(max_tokens=9),
    "image": ImageFeature(height=16, width=16, channels=1),
    "image in colour": ImageFeature(height=32, width=16, channels=3),
    "image of odd size": ImageFeature(height=7, width=1, channels=3),
    "video": VideoFeature(height=16, width=16, channels=3, num_frames=8),
    "audio": AudioFeature(representation="log_mel", num_bins=16, max_s=0.4),
    "audio of fixed length": AudioFeature(representation="log_mel", num_bins=16, num_frames=16),
    "audio as a wave": AudioFeature(representation="waveform", max_s=0.1),
    "label": LabelFeature(classes=("cat", "dog", "owl")),
    "labels": LabelsFeature(parts={"verb": ("cut", "pour"), "noun": ("egg", "oil", "salt")}),
    "multilabel": MultiLabelFeature(classes=("cat", "dog", "owl", "eel")),
    "numbers": NumbersFeature(names=BOX),
    "mask": MaskFeature(height=16, width=16, classes=("sky", "sea")),
}
PICTURES = {"image", "image in colour", "image of odd size"}
SCORES = {"label", "labels", "multilabel", "numbers"}
PATCHED = {"image", "image in colour", "video", "audio of fixed length", "text", "tree"}
SOUNDS = {"audio", "audio of fixed length", "audio as a wave"}
TRAINS = {
    "multimodel": set(
        product(PICTURES | SOUNDS | {"text", "tree", "label"}, {"text", "tree", "label"})
    ),
    "polyvit": {
        *product(PATCHED, SCORES),
        *product(("image", "audio of fixed length"), ("mask",)),  # of the mask's size
    },
    "resnet": set(product(PICTURES, SCORES)),
}
VOCABULARY = Vocabulary.train(["cat", "dog"], size=300, commands=("to_x",))


def test_every_modality_and_every_family_is_among_the_pairs():
    assert {feature.modality for feature in FEATURES.values()} == set(modalities.names())
    assert set(BODIES) == set(TRAINS) == set(families())


def fitting_name(names: tuple[str, ...], check: Callable[[str], None]) -> str:
    """The first that a target of the kind takes; of what is no target, any."""
    for name in names:
        with contextlib.suppress(MMTrainError):
            check(name)
            return name
    return names[0]


def recipe_of(family: str, inputs: str, targets: str, **nets: Any) -> Recipe:
    feature = FEATURES[targets]
    task = Task(
        name="pair",
        source=Source(uri="raw/pair", format="jsonl"),
        inputs=FEATURES[inputs],
        targets=feature,
        command="to_x" if modalities.is_text(feature.modality) else None,
        metrics=(fitting_name(
            tuple(sorted(metrics.SHIPPED)),
            lambda name: metrics.check_metrics([name], feature, task=""),
        ),),
        baseline=fitting_name(
            tuple(sorted(baselines.SHIPPED, reverse=True)),
            lambda name: baselines.check_baseline(name, feature=feature, task=""),
        ),
        batch_size=2,
    )  # fmt: skip
    return Recipe(
        name="pair",
        tasks={"pair": task},
        model=ModelConfig(family=family, body=BODIES[family], nets=nets),
        optimizer=OptimizerConfig(),
        engine=EngineConfig(name="torch"),
        num_steps=1,
    )


def refusal(recipe: Recipe, folder: Path) -> MMTrainError | None:
    """Why a run is refused before its corpora are looked for, which are not there."""
    try:
        prepare_run(recipe, out=folder / "run", data_dir=folder / "corpora", resume=False)
    except CorpusError:
        return None
    except MMTrainError as error:
        return error
    raise AssertionError("the corpora are not built")


def array(feature: Feature, *, length: int, rng: np.random.Generator) -> np.ndarray:
    """Made-up values of a feature, of axis 0 so long."""
    shape = (length, *feature.longest_shape[1:])
    if feature.dtype == "float32":
        return rng.random(shape, dtype=np.float32)
    if modalities.is_text(feature.modality):
        return np.append(rng.integers(3, VOCABULARY.size, length - 1), 1).astype(np.int32)
    highest = {"multilabel": 2, "labels": 2, "image": 256, "video": 256}
    most = highest.get(feature.modality) or len(feature.classes)  # type: ignore[attr-defined]
    return rng.integers(0, most, shape).astype(feature.dtype)


def batch_of(task: Task, *, shortest: bool) -> Batch:
    rng, sides = np.random.default_rng(0), []
    for feature in (task.inputs, task.targets):
        longest = feature.longest_shape[0]
        varies = modalities.is_text(feature.modality) or (
            isinstance(feature, AudioFeature) and feature.num_frames is None
        )
        least = 2 if shortest and varies else longest
        arrays = [array(feature, length=length, rng=rng) for length in (longest, least)]
        arrays = arrays[1:] if shortest else arrays
        sides.append(modalities.collate(arrays))
    (inputs, targets), count = sides, len(sides[0].values)
    return Batch(
        step=0, micro=0, task=task.name, inputs=inputs.values, input_lengths=inputs.lengths,
        targets=targets.values, target_lengths=targets.lengths, example_ids=np.arange(count),
    )  # fmt: skip


def train_steps(recipe: Recipe) -> list[float]:
    """Gradient norms of a step on the longest batch, and of one on a single shortest example."""
    model = recipe_model(recipe, VOCABULARY)
    passes = Passes.build(recipe.pruning, model, tasks=recipe.tasks, seed=recipe.seed)
    ranks = Ranks(0, 1, torch.device("cpu"))
    engine = build_engine(recipe.engine, model=model, optimizer=recipe.optimizer)
    objective, owners = build_objective(recipe, ranks), {"pair": model.owners("pair")}
    rates = step_rates(recipe.optimizer, step=0, num_steps=1, tasks=recipe.tasks, owners=owners)
    norms = []
    for shortest in (False, True):
        micro = batch_of(recipe.tasks["pair"], shortest=shortest)
        counts = objective.count_targets([micro])
        for _, drawn in passes.each([micro]):
            with passes.masked(drawn):
                loss = objective.micro_loss(
                    engine, micro, num_targets=counts, rates=rates, masked=drawn
                )
                engine.backward(loss.share)
        stats = engine.step(
            rates.learning_rates, learning_rates=rates.learning_rates, **rates.decays
        )
        norms.append(float(stats.gradient_norm))
    return norms


@pytest.mark.parametrize(("inputs", "targets"), list(product(FEATURES, FEATURES)))
@pytest.mark.parametrize("family", families())
def test_a_pair_trains_or_is_refused_before_a_process_starts(family, inputs, targets, tmp_path):
    recipe = recipe_of(family, inputs, targets)
    error = refusal(recipe, tmp_path)
    assert (error is None) == ((inputs, targets) in TRAINS[family]), error
    if error is None:
        norms = train_steps(recipe)
        assert all(math.isfinite(norm) for norm in norms)
        assert norms[0] > 0
    else:
        assert isinstance(error, FittingError)
        assert "task pair: " in str(error)
        assert "\n" not in str(error)
