"""Runs that learn masks of subtasks, so that the model can be cut down to any of their unions.

The method is that of the patent application WO2021251960A1, here on a residual network (its own
case, subtasks being classes), on PolyViT and on MultiModel (subtasks being whole tasks).
"""

from mmtrain.engines import EngineConfig
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.masks.config import PruningConfig
from mmtrain.models import resnet
from mmtrain.models.model import ModelConfig
from mmtrain.recipe import Recipe
from mmtrain.recipes.multimodel import quickstart
from mmtrain.recipes.polyvit import polyvit_tiny
from pipelines.modalities.image import ImageFeature
from pipelines.schedule import ScheduleConfig
from pipelines.tasks.multimodel import IMAGE_CLASSIFICATION

SMALL_DIGITS = IMAGE_CLASSIFICATION.model_copy(
    update={
        "name": "small_digits",
        "inputs": ImageFeature(height=16, width=16, channels=1),  # the scans are of 8 x 8
        "loss": "sigmoid_cross_entropy",  # each class by itself, as it is to be cut
        "batch_size": 64,
    }
)
DIGIT_PAIRS = {
    f"digits_{digit}{digit + 1}": (f"small_digits:{digit}", f"small_digits:{digit + 1}")
    for digit in range(0, 10, 2)
}
PRUNED_POLYVIT = ("digit", "motion_direction", "spoken_digit")
PRUNED_MULTIMODEL = ("image_classification", "speech_recognition", "translation_en_de")


def san_resnet() -> Recipe:
    """Digits by a residual network in five subtasks of two classes; 2 CPU workers, 4 minutes."""
    return Recipe(
        name="san_resnet",
        tasks={SMALL_DIGITS.name: SMALL_DIGITS},
        model=ModelConfig(family="resnet", body=resnet.Config(depth=8, widths=(16, 32, 64))),
        schedule=ScheduleConfig(name="alternating"),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", decay_start=0.0),
        engine=EngineConfig(name="deepspeed", zero_stage=1),
        pruning=PruningConfig(subtasks=DIGIT_PAIRS, gamma=0.1, warmup_steps=100),
        num_steps=800,
        num_workers=2,
        log_every=20,
        validate_every=200,
        save_every=200,
    )


def san_polyvit() -> Recipe:
    """Three tasks of PolyViT, each a subtask; 2 CPU workers, 6 minutes."""
    own = {"learning_rate": None, "warmup_steps": None}  # theirs are of SGD, see `polyvit_tiny`
    recipe = polyvit_tiny().only(PRUNED_POLYVIT)
    return recipe.with_(
        name="san_polyvit",
        tasks={name: task.model_copy(update=own) for name, task in recipe.tasks.items()},
        pruning=PruningConfig(
            subtasks={task: (task,) for task in recipe.tasks}, gamma=0.1, warmup_steps=200
        ),
        # of SGD, a price that is a mean over units would hardly move any
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", decay_start=0.0),
        num_steps=1_500,
    )


def san_multimodel() -> Recipe:
    """Three tasks of MultiModel, each a subtask; 2 CPU workers, 8 minutes."""
    recipe = quickstart().only(PRUNED_MULTIMODEL)
    pruning = PruningConfig(
        subtasks={task: (task,) for task in recipe.tasks}, gamma=0.1, warmup_steps=100
    )
    return recipe.with_(name="san_multimodel", pruning=pruning, num_steps=900)
