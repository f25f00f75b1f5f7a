"""Runs of PolyViT: pictures, videos and sounds, one vision transformer, SGD as it was published.

Likhosherstov et al., arXiv:2111.12993. Nothing is tuned for training together: each task brings
the steps, learning rate, batch size and regularisation of its own run.
"""

from mmtrain.engines import EngineConfig
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.modalities import audio_patches, image_patches, video_tubelets
from mmtrain.models import polyvit
from mmtrain.models.model import ModelConfig
from mmtrain.recipe import Recipe
from pipelines.schedule import ScheduleConfig, run_steps
from pipelines.tasks import polyvit_nine
from pipelines.tasks.polyvit import TASKS

PATCH = (8, 8)
PROBE_STEPS = 200  # of each task
SCHEDULE = ScheduleConfig(name="weighted")
OPTIMIZER = OptimizerConfig(
    name="sgd",
    momentum=0.9,
    learning_rate=0.03,
    schedule="warm_cosine",
    clip_norm=1.0,
)


def polyvit_tiny() -> Recipe:
    """Nine tasks on digits seen, moving and spoken; 2 CPU workers, under 15 minutes."""
    tasks = {task.name: task for task in TASKS}
    return Recipe(
        name="polyvit_tiny",
        tasks=tasks,
        model=ModelConfig(
            family="polyvit",
            body=polyvit.Config(model_dim=96, num_layers=4, num_heads=4, mlp_dim=384),
            nets={
                "image_patches": image_patches.Config(patch=PATCH),
                "video_tubelets": video_tubelets.Config(patch=(2, *PATCH)),
                "audio_patches": audio_patches.Config(patch=PATCH, channels=1),
            },
        ),
        schedule=SCHEDULE,
        optimizer=OPTIMIZER,
        engine=EngineConfig(name="deepspeed", zero_stage=1),
        num_steps=run_steps(tasks.values(), config=SCHEDULE),
        num_workers=2,
        log_every=50,
        validate_every=1_000,
        save_every=500,
    )


def polyvit_b_9task() -> Recipe:
    """The published model and its nine data sets, which are yours to bring. 32 GPUs, days."""
    tasks = {task.name: task for task in polyvit_nine.TASKS}
    return Recipe(
        name="polyvit_b_9task",
        tasks=tasks,
        model=ModelConfig(family="polyvit", body=polyvit.Config.base()),
        schedule=SCHEDULE,
        optimizer=OPTIMIZER,
        engine=EngineConfig(name="deepspeed", zero_stage=1, precision="bf16"),
        num_steps=run_steps(tasks.values(), config=SCHEDULE),
        num_workers=32,
        use_gpu=True,
        log_every=100,
        validate_every=10_000,
        save_every=2_000,
    )


def polyvit_digit() -> Recipe:
    """The task digit alone, at its own settings: which digit a scan shows."""
    return _alone("digit")


def polyvit_digit_set() -> Recipe:
    """The task digit_set alone, at its own settings: which digits a canvas holds."""
    return _alone("digit_set")


def polyvit_digit_pair() -> Recipe:
    """The task digit_pair alone, at its own settings: which digit stands left and which right."""
    return _alone("digit_pair")


def polyvit_digit_box() -> Recipe:
    """The task digit_box alone, at its own settings: where a digit is."""
    return _alone("digit_box")


def polyvit_digit_mask() -> Recipe:
    """The task digit_mask alone, at its own settings: which pixels are a digit's, and of which."""
    return _alone("digit_mask")


def polyvit_motion_direction() -> Recipe:
    """The task motion_direction alone, at its own settings: where a digit moves."""
    return _alone("motion_direction")


def polyvit_motion_identity() -> Recipe:
    """The task motion_identity alone, at its own settings: which digit moves."""
    return _alone("motion_identity")


def polyvit_spoken_digit() -> Recipe:
    """The task spoken_digit alone, at its own settings: which digit is said."""
    return _alone("spoken_digit")


def polyvit_speaking_voice() -> Recipe:
    """The task speaking_voice alone, at its own settings: whose voice says it."""
    return _alone("speaking_voice")


def _alone(task: str) -> Recipe:
    """`polyvit_tiny` with one task, for the steps of its own run."""
    recipe = polyvit_tiny().only([task])
    return recipe.with_(
        name=f"polyvit_{task}", num_steps=run_steps(recipe.tasks.values(), config=SCHEDULE)
    )


def linear_probe() -> Recipe:
    """Fresh linear heads on a frozen body, of what --init-from names; how far its features go."""
    probed = {"num_steps": PROBE_STEPS, "learning_rate": None, "warmup_steps": None}
    plain = {"betas": None, "momentum": None, "mixup": 0.0, "drop_layer": 0.0, "augment": ()}
    tasks = {task.name: task.model_copy(update=probed | plain) for task in TASKS}
    schedule = ScheduleConfig(name="alternating")
    return polyvit_tiny().with_(
        name="linear_probe",
        tasks=tasks,
        frozen=("body/*", "modality/*"),
        init_heads="fresh",
        schedule=schedule,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
        num_steps=run_steps(tasks.values(), config=schedule),
        validate_every=0,
    )
