"""The published runs of MultiModel: sizes, batches, losses and rates, by the paper and its code."""

import itertools

import pytest

from mmtrain.planning.estimate import parameters_of
from mmtrain.planning.footprint import meta_model
from mmtrain.recipe import load_recipe, recipe_functions
from mmtrain.step.rates import learning_rate
from pipelines.task_order import bucket_batch_sizes

TASKS = (
    "speech_recognition",
    "image_classification",
    "image_captioning",
    "parsing",
    "translation_en_de",
    "translation_de_en",
    "translation_en_fr",
    "translation_fr_en",
)
LADDER = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
D, E, V = 1024, 240, 8192


def counted(recipe) -> dict[str, int]:
    """Elements by owner."""
    model, _ = meta_model(recipe)
    found: dict[str, int] = {}
    for held in parameters_of(model, recipe):
        found[held.owner] = found.get(held.owner, 0) + held.numel
    return found


def step(taps: int, dim: int = D, out: int = D) -> int:
    """A ConvStep: filters, matrix, gain and shift."""
    return taps * dim + dim * out + 2 * out


def conv_res(dim: int, out: int) -> int:
    """Two steps of 3 x 3 taps, and the shortcut's matrix, gain and shift."""
    return step(9, dim, out) + step(9, out, out) + dim * out + 2 * out


BLOCK = 2 * step(3) + 2 * step(15)
ATTENTION = 2 * step(5) + 2 * D * D  # keys and values
GATE = 2 * D * E + 2 * D  # clean and noise; gain and shift behind the experts
AUDIO_WIDTHS = (2, 2, 4, 8, 16, 32, 64, 128, 256, D)
PUBLISHED_ELEMENTS = {
    "modality/image": (27 * 32 + 3 * 32) + (9 * 32 * 64 + 3 * 64)
    + conv_res(64, 128) + conv_res(128, 256) + conv_res(256, D),
    "modality/spectral": 9 * 2 + 3 * 2
    + sum(conv_res(*pair) for pair in itertools.pairwise(AUDIO_WIDTHS)),
    "modality/text": V * D,
    "modality/text_output": 2 * V * D,  # targets that are fed back, and the map to scores
    "task/image_classification": 3 * step(9) + step(9, D, 1536) + step(9, 1536, 2048)
    + 2048 * 1000 + 1000,
    "body/encoder": 6 * BLOCK + 3 * ATTENTION + GATE,
    "body/mixer": ATTENTION + step(3, 2 * D, D) + 2 * (BLOCK + ATTENTION),
    "body/decoder": 2 * step(3) + 4 * (BLOCK + ATTENTION) + GATE,
    "experts/encoder": E * 2 * D * D,
    "experts/decoder": E * 2 * D * D,
}  # fmt: skip


def test_multimodel_8_has_the_parameters_of_the_published_sizes():
    found = counted(load_recipe("multimodel_8"))
    assert found == PUBLISHED_ELEMENTS
    assert sum(found.values()) == 1_143_491_406


def test_there_is_a_recipe_of_each_task_alone_with_60_experts_and_the_same_batches_and_steps():
    joint = load_recipe("multimodel_8")
    assert tuple(joint.tasks) == TASKS
    assert joint.num_steps == 1_000_000
    for name in TASKS:
        alone = load_recipe(f"multimodel_{name}")
        assert f"multimodel_{name}" in recipe_functions()
        assert alone.tasks == {name: joint.tasks[name]}
        assert alone.num_steps == joint.num_steps // len(TASKS) == 125_000
        assert alone.num_workers == joint.num_workers
        assert alone.model.nets == joint.model.nets
        assert alone.model.body == joint.model.body.model_copy(update={"num_experts": 60})
    classes = counted(load_recipe("multimodel_image_classification"))
    assert "body/decoder" not in classes
    assert classes["experts/encoder"] == 60 * 2 * D * D


def test_published_features_have_the_published_sizes():
    tasks = load_recipe("multimodel_8").tasks
    for name in ("image_classification", "image_captioning"):
        assert tasks[name].inputs.longest_shape == (299, 299, 3)
    assert tasks["image_classification"].targets.num_outputs == 1000
    assert tasks["speech_recognition"].inputs.longest_shape == (3001, 80)
    assert tasks["translation_en_de"].inputs.longest_shape == (1024,)


def test_published_batches_hold_1024_tokens_of_the_longer_side_for_each_worker():
    recipe = load_recipe("multimodel_8")
    for name in TASKS[3:]:
        task = recipe.tasks[name]
        assert task.bucket_bounds == LADDER
        sizes = bucket_batch_sizes(task, bounds=LADDER)
        assert sizes == tuple(8 * (1024 // bound) for bound in LADDER)
    for name in ("image_classification", "image_captioning"):
        tokens = 299 * 299 / 256
        bound = min(bound for bound in LADDER if bound >= tokens)
        assert recipe.tasks[name].batch_size == 8 * (1024 // bound) == 16
    speech = recipe.tasks["speech_recognition"]
    sizes = bucket_batch_sizes(speech, bounds=speech.bucket_bounds)
    for frames, size in zip(speech.bucket_bounds, sizes, strict=True):
        tokens = frames * 80 / 512
        bound = min(bound for bound in LADDER if bound >= tokens)
        assert size == 8 * (1024 // bound)


def test_published_losses_have_their_weights_and_all_are_smoothed():
    tasks = load_recipe("multimodel_8").tasks
    weights = {name: task.loss_weight for name, task in tasks.items()}
    others = dict.fromkeys(TASKS[2:], 1.0)
    assert weights == {"speech_recognition": 2.0, "image_classification": 0.7, **others}
    assert {task.label_smoothing for task in tasks.values()} == {0.1}


def test_the_published_rate_of_eight_replicas_stays_to_step_500_000_and_then_falls():
    recipe = load_recipe("multimodel_8")
    expected = {
        0: 3.535534e-07,
        12_000: 3.535534e-06,
        24_000: 3.535534e-05,  # 0.05 / 500 / sqrt(8)
        500_000: 3.535534e-05,
        600_000: 2.254354e-05,  # 0.9999955^100,000
        999_999: 3.726423e-06,
    }
    for step_, rate in expected.items():
        found = learning_rate(recipe.optimizer, step=step_, num_steps=recipe.num_steps)
        assert found == pytest.approx(rate, rel=1e-6)
    alone = load_recipe("multimodel_parsing")
    for step_, rate in {0: 1e-6, 1500: 1e-5, 3000: 1e-4, 62_500: 1e-4}.items():
        found = learning_rate(alone.optimizer, step=step_, num_steps=alone.num_steps)
        assert found == pytest.approx(rate)
