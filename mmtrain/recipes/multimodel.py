"""Small runs of MultiModel: eight tasks in four modalities, one model."""

from mmtrain.engines import EngineConfig
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.models import multimodel
from mmtrain.models.model import ModelConfig
from mmtrain.recipe import Recipe
from pipelines.layout import BuildConfig
from pipelines.schedule import ScheduleConfig
from pipelines.tasks.multimodel import TASKS

VOCABULARY_SIZE = 2000


def quickstart() -> Recipe:
    """All eight tasks in 3,000 steps on 2 CPU workers, about 10 minutes; every task is learned.

    The map W_O after attention's heads and the widths of the label net, 1.25 to 2.5 D, are those of
    tensor2tensor v1.0.3; the published ones are in `multimodel_8`.
    """
    return Recipe(
        name="quickstart",
        tasks={task.name: task for task in TASKS},
        model=ModelConfig(
            family="multimodel",
            body=multimodel.Config(
                model_dim=96,
                num_heads=4,
                num_experts=8,
                expert_dim=96,
                join="none",
                drop_prob=0.0,  # 0.1 kept captions from digits for 300 steps of theirs, 0 did not
            ),
        ),
        build=BuildConfig(vocabulary_size=VOCABULARY_SIZE),
        schedule=ScheduleConfig(name="alternating"),
        optimizer=OptimizerConfig(),
        engine=EngineConfig(name="deepspeed", zero_stage=1, ep_size=2),
        num_steps=3000,
        num_workers=2,
        log_every=40,
        validate_every=600,
        save_every=400,
    )


def debug() -> Recipe:
    """Two tasks, a tiny body, 20 steps on one worker; under a minute, to see that all works."""
    return (
        quickstart()
        .only(["image_classification", "parsing"])
        .with_(
            name="debug",
            model=ModelConfig(
                family="multimodel",
                body=multimodel.Config(
                    model_dim=32,
                    num_heads=2,
                    encoder_conv_blocks=1,
                    encoder_attention_blocks=1,
                    mixer_blocks=1,
                    decoder_blocks=2,
                    num_experts=4,
                    active_experts=2,
                    expert_dim=32,
                    join="none",
                ),
            ),
            engine=EngineConfig(name="torch"),
            optimizer=OptimizerConfig(warmup_steps=5),
            num_steps=20,
            num_workers=1,
            log_every=5,
            validate_every=0,
            save_every=10,
        )
    )
