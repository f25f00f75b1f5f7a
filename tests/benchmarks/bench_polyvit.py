"""PolyViT against a plain vision transformer, and a part of it against the whole.

A training step (forward, cross-entropy, backward, clipping, AdamW) of a ViT-Ti of ours on 8
pictures of 224 x 224 by the torch engine, against `transformers`' ViTForImageClassification of the
same size with scaled_dot_product_attention in a bare loop. Then one task's part of a model of three
modalities, of which each has half of the blocks for itself, against the whole: time of a
prediction, and weights.

One process, one thread; times are the process's CPU time, which a busy machine disturbs least.

    python tests/benchmarks/bench_polyvit.py [--repeats 9]
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification

from mmtrain.engines import EngineConfig, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.losses import cross_entropy
from mmtrain.modalities import audio_patches, image_patches, video_tubelets
from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, build_model
from mmtrain.models.polyvit import Config

SIDE, BATCH, CLASSES = 224, 8, 10
OPTIMIZER = OptimizerConfig()
TASKS = (
    TaskSpec(name="image", input_net="image_patches", output_net="linear", num_outputs=CLASSES),
    TaskSpec(name="video", input_net="video_tubelets", output_net="linear", num_outputs=CLASSES),
    TaskSpec(name="audio", input_net="audio_patches", output_net="linear", num_outputs=CLASSES),
)


def build(tasks: tuple[TaskSpec, ...], *, num_adapter_blocks: int = 0) -> MultiTaskModel:
    config = ModelConfig(
        family="polyvit",
        body=Config.tiny(num_adapter_blocks=num_adapter_blocks),
        nets={
            "image_patches": image_patches.Config(height=SIDE, width=SIDE, channels=3),
            "video_tubelets": video_tubelets.Config(
                num_frames=8, height=112, width=112, channels=3
            ),
            "audio_patches": audio_patches.Config(num_frames=128),
        },
        vocab_size=2,
    )
    return build_model(config, tasks, seed=0)


def our_step() -> Callable[[], None]:
    """A step as the train loop takes it."""
    model = build(TASKS[:1])
    owners = model.owners("image")
    engine = build_engine(EngineConfig(name="torch"), model=model, optimizer=OPTIMIZER)
    pixels = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8)
    lengths, targets = torch.full((BATCH,), SIDE), torch.arange(BATCH)[:, None] % CLASSES

    def run() -> None:
        outputs = engine.forward(task="image", inputs=pixels, input_lengths=lengths, targets=None)
        loss = cross_entropy(outputs.logits, targets)
        engine.backward(loss.total / BATCH + outputs.auxiliary_loss)
        engine.step(owners, learning_rates=dict.fromkeys(owners, 1e-3))

    return run


def plain_vit() -> ViTForImageClassification:
    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=SIDE,
        num_labels=CLASSES,
        hidden_act="gelu_pytorch_tanh",
        attn_implementation="sdpa",
    )
    return ViTForImageClassification(config)


def plain_step() -> Callable[[], None]:
    """The same step in a loop that anyone would write, on pixels that are floats already."""
    model = plain_vit()
    adam = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=OPTIMIZER.betas, weight_decay=0.0, fused=True
    )
    pixels = torch.randn(BATCH, 3, SIDE, SIDE)
    targets = torch.arange(BATCH) % CLASSES

    def run() -> None:
        loss = functional.cross_entropy(model(pixels).logits, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        adam.step()
        adam.zero_grad()

    return run


def part_of(whole: MultiTaskModel, tasks: tuple[TaskSpec, ...]) -> MultiTaskModel:
    """What extraction takes out: the model that these tasks build, with the whole's weights."""
    part = build(tasks, num_adapter_blocks=len(whole.adapters["image_patches"].blocks))
    state = whole.state_dict()
    part.load_state_dict({name: state[name] for name in part.state_dict()})
    return part


def prediction(model: MultiTaskModel) -> Callable[[], None]:
    pixels = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8)
    lengths = torch.full((BATCH,), SIDE)
    model.eval()

    def run() -> None:
        with torch.inference_mode():
            model(task="image", inputs=pixels, input_lengths=lengths, targets=None)

    return run


def medians(runs: Mapping[str, Callable[[], None]], *, repeats: int) -> dict[str, float]:
    """Median CPU milliseconds by contender, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if repeat:  # the first round warms up
                times[name].append((time.process_time() - began) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def megabytes(model: nn.Module) -> float:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values()) / 1e6


def report(name: str, *, ours: float, peer: float, unit: str) -> None:
    line = {
        "name": name,
        "ours": round(ours, 2),
        "peer": round(peer, 2),
        "ratio": round(ours / peer, 3),
        "unit": unit,
        "better": "lower",
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    """Prints one line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    steps = medians({"ours": our_step(), "plain": plain_step()}, repeats=repeats)
    report(
        "polyvit_step_against_transformers_vit",
        ours=steps["ours"],
        peer=steps["plain"],
        unit="CPU ms a step",
    )
    whole = build(TASKS, num_adapter_blocks=6)
    part = part_of(whole, TASKS[:1])
    times = medians({"part": prediction(part), "whole": prediction(whole)}, repeats=repeats)
    report(
        "polyvit_prediction_by_one_tasks_part_against_the_whole",
        ours=times["part"],
        peer=times["whole"],
        unit="CPU ms a batch",
    )
    report(
        "polyvit_weights_of_one_tasks_part_against_the_whole",
        ours=megabytes(part),
        peer=megabytes(whole),
        unit="MB",
    )


if __name__ == "__main__":
    main()
