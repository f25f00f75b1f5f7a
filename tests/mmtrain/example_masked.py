"""A small residual network of five classes of pictures with masks of three subtasks, its run folder
and built corpora; random weights. And a PolyViT of five tasks with masks.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from mmtrain.bundle import Bundle, Lineage, bundle_task, load_bundle, save_bundle
from mmtrain.engines import EngineConfig
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.masks.attach import add_masks
from mmtrain.masks.config import PruningConfig
from mmtrain.models import resnet
from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, build_model
from mmtrain.recipe import Recipe
from pipelines.modalities.image import ImageFeature, to_png
from pipelines.modalities.label import LabelFeature
from pipelines.task import Source, Split, Task
from tests.mmtrain.example_corpus import write_split
from tests.mmtrain.example_polyvit import LINEAGE, bundle_tasks, small_polyvit

CLASSES = ("black", "dark", "grey", "light", "white")
LEVELS = (0, 60, 120, 180, 240)
SHADES = Task(
    name="shades",
    source=Source(uri="raw/shades", format="image_folder"),
    inputs=ImageFeature(height=8, width=8, channels=1),
    targets=LabelFeature(classes=CLASSES),
    loss="sigmoid_cross_entropy",
    metrics=("accuracy", "log_perplexity"),
    baseline="majority_class",
    batch_size=4,
)
PRUNING = PruningConfig(
    subtasks={
        "deep": ("shades:black", "shades:dark"),
        "mid": ("shades:grey",),
        "pale": ("shades:light", "shades:white"),
    },
    sigma=0.5,
    gamma=0.3,
)
NUM_TRAINED, NUM_TESTED = 40, 20


def picture(number: int) -> tuple[bytes, str]:
    """A noisy square of the class number % 5."""
    noise = np.random.default_rng(number).integers(0, 16, size=(8, 8))
    pixels = (LEVELS[number % 5] + noise).astype(np.uint8)
    return to_png(pixels), CLASSES[number % 5]


def build_shades(data_dir: Path) -> Path:
    sizes: dict[Split, int] = {"train": NUM_TRAINED, "validation": 10, "test": NUM_TESTED}
    for first, (split, count) in enumerate(sizes.items()):
        rows = [picture(1000 * first + number) for number in range(count)]
        write_split(data_dir, SHADES, split=split, rows=rows, vocabulary=None)
    return data_dir


def shades_config() -> ModelConfig:
    return ModelConfig(family="resnet", body=resnet.Config(channels=1, depth=8, widths=(4, 6, 8)))


def shades_recipe() -> Recipe:
    return Recipe(
        name="shading",
        tasks={"shades": SHADES},
        model=shades_config(),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        engine=EngineConfig(name="torch"),
        pruning=PRUNING,
        num_steps=2,
    )


def shades_model(*, seed: int = 0) -> MultiTaskModel:
    spec = TaskSpec(
        name="shades",
        input_net="image_pixels",
        output_net="linear",
        num_outputs=5,
        loss="sigmoid_cross_entropy",
    )
    model = build_model(shades_config(), [spec], seed)
    randomise(model, seed=seed)
    add_masks(model, PRUNING, seed=seed)
    return model.eval()


def randomise(model: nn.Module, *, seed: int) -> None:
    """No weight, scale or running statistic is zero or one, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                noise = 0.1 * torch.randn(value.shape, generator=generator)
                value += noise.abs() if name.endswith("running_var") else noise


def save_shades(run: Path, *, seed: int = 0) -> Bundle:
    """A run's folder: bundle and recipe."""
    model = shades_model(seed=seed)
    save_bundle(
        run / "bundle",
        model=model.config,
        tasks={"shades": bundle_task(SHADES, spec=model.task("shades"))},
        state=model.state_dict(),
        vocabulary=None,
        lineage=Lineage(
            recipe="shading",
            recipe_digest="0123456789abcdef",
            code_version="0.1.0+abc",
            corpora={"shades": "c0ffee"},
            step=2,
        ),
        pruning=PRUNING,
    )
    (run / "recipe.json").write_text(shades_recipe().model_dump_json())
    return load_bundle(run / "bundle")


SENSES = PruningConfig(
    subtasks={"seen": ("shape", "colour"), "moving": ("motion",), "heard": ("word", "voice")}
)


def save_senses(folder: Path) -> Bundle:
    """The bundle of a PolyViT whose subtasks are whole tasks."""
    model = small_polyvit()
    add_masks(model, SENSES, seed=0)
    save_bundle(
        folder,
        model=model.config,
        tasks=bundle_tasks(),
        state=model.state_dict(),
        vocabulary=None,
        lineage=LINEAGE,
        pruning=SENSES,
    )
    return load_bundle(folder)
