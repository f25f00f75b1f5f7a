"""A bundle of a small untrained model on the three tasks of `example_corpus`."""

from functools import cache
from pathlib import Path

from mmtrain.bundle import Lineage, bundle_task, save_bundle
from mmtrain.modalities import image
from mmtrain.models import multimodel
from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, build_model
from tests.mmtrain.example_corpus import CLASSES, TASKS, example_vocabulary

LINEAGE = Lineage(
    recipe="tiny",
    recipe_digest="0123456789abcdef",
    code_version="0.1.0+abc",
    corpora={"names": "c0ffee"},
    step=7,
    seconds=4.0,
    task_steps={"names": 3},
    task_seconds={"names": 1.5},
)


def example_config(vocab_size: int) -> ModelConfig:
    body = multimodel.Config(
        model_dim=16,
        num_heads=2,
        encoder_conv_blocks=1,
        encoder_attention_blocks=1,
        mixer_blocks=1,
        decoder_blocks=2,
        num_experts=4,
        active_experts=2,
        expert_dim=16,
    )
    return ModelConfig(body=body, nets={"image": image.Config(channels=1)}, vocab_size=vocab_size)


def example_specs() -> dict[str, TaskSpec]:
    vocabulary = example_vocabulary()
    return {
        name: TaskSpec(
            name=name,
            input_net=task.inputs.net,
            output_net=task.targets.net,
            num_outputs=len(CLASSES) if name == "shades" else None,
            command_id=vocabulary.command_id(task.command) if task.command else None,
        )
        for name, task in TASKS.items()
    }


@cache
def example_model() -> MultiTaskModel:
    config = example_config(example_vocabulary().size)
    return build_model(config, example_specs().values(), seed=3)


def example_bundle(folder: Path) -> Path:
    specs = example_specs()
    return save_bundle(
        folder,
        model=example_model().config,
        tasks={name: bundle_task(task, spec=specs[name]) for name, task in TASKS.items()},
        state=example_model().state_dict(),
        vocabulary=example_vocabulary(),
        lineage=LINEAGE,
    )
