"""One rank of a small process group: runs a list of jobs and writes what it saw as JSON.

    python ranks.py RANK WORLD_SIZE STORE OUT JOBS...

Starting a process costs seconds, so one group runs many jobs; the tests read the results.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem
from torch.nn import functional
from toy import ADAM, LION, MOMENTA, SGD, STALE, ToyModel, global_batch, task_of, toy_model, train

from mmtrain import checkpoint
from mmtrain.checkpoint import CheckpointError, Progress
from mmtrain.checkpoint import files as checkpoint_files
from mmtrain.checkpoint.manifest import to_manifest
from mmtrain.engines import EngineConfig, EngineError, build_engine
from mmtrain.losses import cross_entropy, weight_decay_loss
from mmtrain.modalities import image
from mmtrain.models import multimodel, resnet
from mmtrain.models.model import ModelConfig, TaskSpec, build_model
from mmtrain.step.gradients import build_gradients

LAYOUTS = {
    "torch": EngineConfig(name="torch"),
    "zero0": EngineConfig(zero_stage=0),
    "zero1": EngineConfig(zero_stage=1),
    "zero2": EngineConfig(zero_stage=2),
    "zero3": EngineConfig(zero_stage=3),
    "zero1_ep2": EngineConfig(zero_stage=1, ep_size=2),
    "zero2_ep2": EngineConfig(zero_stage=2, ep_size=2),
    "torch_bf16": EngineConfig(name="torch", precision="bf16"),
    "zero1_bf16": EngineConfig(zero_stage=1, precision="bf16"),
    "zero2_bf16": EngineConfig(zero_stage=2, precision="bf16"),
    "zero3_bf16": EngineConfig(zero_stage=3, precision="bf16"),
    "zero1_offload": EngineConfig(zero_stage=1, offload_optimizer=True),
    "zero2_offload": EngineConfig(zero_stage=2, offload_optimizer=True),
    "zero3_offload": EngineConfig(zero_stage=3, offload_optimizer=True),
}


OPTIMIZERS = {"": ADAM, "sgd": SGD, "stale": STALE, "lion": LION}


def engine_of(layout: str, *, seed: int = 0, **model: int) -> Any:
    """The engine of a layout: "zero1" with AdamW, "zero1+sgd" with momentum."""
    layout, _, optimizer = layout.partition("+")
    torch.manual_seed(seed)
    made = ToyModel(**model) if model else toy_model(seed)
    return build_engine(LAYOUTS[layout], model=made, optimizer=OPTIMIZERS[optimizer])


def digests(engine: Any) -> dict[str, str]:
    """SHA-256 of each tensor that is this rank's to write; the step count beside it."""
    return {
        f"{state.name}/{key}": f"{state.step} {hashlib.sha256(value.numpy().tobytes()).hexdigest()}"
        for state in engine.parameter_states()
        for key, value in state.tensors.items()
    }


def weights(engine: Any) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in engine.model_state().items()}


def straight(layout: str, micros: str, steps: str) -> dict[str, Any]:
    """So many steps from scratch."""
    engine = engine_of(layout)
    trace = train(engine, first=0, last=int(steps), micros=int(micros))
    return {"trace": trace, "weights": weights(engine)}


def momenta(layout: str) -> dict[str, Any]:
    """12 steps, each with the momentum of its task."""
    engine = engine_of(layout)
    trace = train(engine, first=0, last=12, micros=3, momenta=MOMENTA)
    return {"trace": trace, "weights": weights(engine)}


def projected(layout: str) -> dict[str, Any]:
    """6 steps of both tasks at once, without their conflicts, two micro-batches of each."""
    engine = engine_of(layout)
    gradients = build_gradients("pcgrad", engine=engine, seed=0)
    trace = []
    for step in range(6):
        for task in ("red", "blue"):
            for micro in range(2):
                inputs, labels = global_batch(step, 2 * (task == "red") + micro)
                rows = slice(engine.rank, None, engine.world_size)
                logits = engine.forward(task=task, inputs=inputs[rows]).logits.float()
                loss = functional.cross_entropy(logits, labels[rows], reduction="sum")
                gradients.add(task, loss / 24)
        gradients.finish(step)
        owners = engine.model.owners("red") | engine.model.owners("blue")
        stats = engine.step(owners, learning_rates=dict.fromkeys(owners, 0.01))
        trace.append((0.0, stats.gradient_norm))
    return {"trace": trace, "weights": weights(engine)}


def save(layout: str, folder: str) -> dict[str, Any]:
    """6 steps, a checkpoint, 6 more."""
    engine = engine_of(layout)
    train(engine, first=0, last=6)
    ref = checkpoint.save(folder, engine=engine, progress=Progress(step=6, cursors={"red": 3}))
    trace = train(engine, first=6, last=12)
    return {"ref": ref.digest, "trace": trace, "digests": digests(engine)}


def resume(layout: str, folder: str) -> dict[str, Any]:
    """From the checkpoint of another process group: steps 6 to 12. The weights start elsewhere."""
    engine = engine_of(layout, seed=5)
    ref = checkpoint.latest(folder)
    assert ref is not None
    progress = checkpoint.restore(ref, engine=engine)
    trace = train(engine, first=progress.step, last=12)
    return {"trace": trace, "digests": digests(engine), "weights": weights(engine)}


def frozen_engine(layout: str, *, seed: int = 0) -> Any:
    """All but the heads frozen before the engine takes the model."""
    model = toy_model(seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("heads."))
    return build_engine(LAYOUTS[layout], model=model, optimizer=ADAM)


def frozen_save(layout: str, folder: str) -> dict[str, Any]:
    """6 steps of the heads alone, a checkpoint, 6 more."""
    engine = frozen_engine(layout)
    before = weights(engine)
    train(engine, first=0, last=6)
    checkpoint.save(folder, engine=engine, progress=Progress(step=6))
    trace = train(engine, first=6, last=12)
    return {"before": before, "trace": trace, "weights": weights(engine)}


def frozen_resume(layout: str, folder: str) -> dict[str, Any]:
    """From that checkpoint: steps 6 to 12. The weights start elsewhere."""
    engine = frozen_engine(layout, seed=5)
    ref = checkpoint.latest(folder)
    assert ref is not None
    progress = checkpoint.restore(ref, engine=engine)
    trace = train(engine, first=progress.step, last=12)
    return {"trace": trace, "weights": weights(engine)}


def idle(layout: str) -> dict[str, Any]:
    """Which entries change in two steps of the blue task, after two of the red one."""
    engine = engine_of(layout)
    train(engine, first=0, last=2)
    before = digests(engine)
    train(engine, first=2, last=4)
    after = digests(engine)
    return {"changed": sorted(name for name in before if before[name] != after[name])}


def poison(layout: str) -> dict[str, Any]:
    """A step whose gradient is NaN on the last rank alone, then a good one."""
    engine = engine_of(layout)
    train(engine, first=0, last=2)
    before = digests(engine)
    inputs, _ = global_batch(2, 0)
    task = task_of(2)
    bad = float("nan") if engine.rank == engine.world_size - 1 else 1.0
    engine.backward(engine.forward(task=task, inputs=inputs).logits.sum() * bad)
    stats = engine.step(
        engine.model.owners(task), learning_rates=dict.fromkeys(engine.model.owners(task), 1e-2)
    )
    after = digests(engine)
    trace = train(engine, first=2, last=4)
    return {"norm": stats.gradient_norm, "same": before == after, "trace": trace}


def other_model(layout: str, folder: str) -> dict[str, Any]:
    """Loading a checkpoint into models of another shape or with another number of experts."""
    messages = []
    for change in ({"width": 8}, {"num_experts": 2}, {"num_experts": 6}):
        ref = checkpoint.latest(folder)
        assert ref is not None
        try:
            checkpoint.restore(ref, engine=engine_of(layout, **change))
        except EngineError as error:
            messages.append(str(error))
    return {"messages": messages}


def full_disk(layout: str, folder: str) -> dict[str, Any]:
    """The last rank cannot write: every rank is told, and nothing is published."""
    engine = engine_of(layout)
    put = checkpoint_files.put

    def fail(*_: Any) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    if engine.rank == engine.world_size - 1:
        checkpoint.put = fail  # type: ignore[attr-defined]
    try:
        checkpoint.save(folder, engine=engine, progress=Progress(step=1))
    except CheckpointError as error:
        return {"error": str(error), "latest": checkpoint.latest(folder) is not None}
    finally:
        checkpoint.put = put  # type: ignore[attr-defined]
    return {"error": None}


TEARS = {
    "none": lambda _: None,
    "unfinished": lambda step: (step / "manifest.json").unlink(),
    "other": lambda step: rewrite_manifest(step),
    "changed": lambda step: flip_last_byte(sorted(step.glob("weights-*"))[-1]),
    "directory": lambda step: in_place_of(sorted(step.glob("weights-*"))[0]),
}


def rewrite_manifest(step: Path) -> None:
    body = json.loads((step / "manifest.json").read_bytes())["body"]
    body["progress"]["run_id"] = "another"
    (step / "manifest.json").write_bytes(to_manifest(body))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def in_place_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


def torn(layout: str, folder: str, rank: str, tear: str) -> dict[str, Any]:
    """Checkpoints of steps 2 and 4; then one rank's view of step 4 is another than the others'.

    What each rank is told and loads, and how often it reads a file of weights.
    """
    engine = engine_of(layout)
    saved = {}
    for step in (2, 4):
        train(engine, first=step - 2, last=step)
        saved[step] = checkpoint.save(folder, engine=engine, progress=Progress(step=step)).digest
        saved[f"states of {step}"] = digests(engine)
    view = Path(f"{folder}-{engine.rank}")
    shutil.copytree(folder, view)
    if engine.rank == int(rank):
        TEARS[tear](view / "step-000000004")
    reads: dict[str, int] = {}
    whole = LocalFileSystem.cat_file

    def cat_file(self: Any, name: str, *arguments: Any, **settings: Any) -> bytes:
        reads[Path(name).name] = reads.get(Path(name).name, 0) + 1
        return whole(self, name, *arguments, **settings)

    LocalFileSystem.cat_file = cat_file
    other, error = engine_of(layout, seed=5), None
    try:
        ref = checkpoint.agree(view, member=other)
        assert ref is not None
        checkpoint.restore(ref, engine=other)
    except CheckpointError as caught:
        error = str(caught)
    finally:
        LocalFileSystem.cat_file = whole
    return {"error": error, "saved": saved, "reads": reads, "digests": digests(other)}


def real_model(layout: str, decay: str = "0") -> dict[str, Any]:
    """The shipped model on two tasks, one with a decoder; blocks computed again in backward.

    `decay` is the weight of the decay in the loss.
    """
    body = multimodel.Config(
        model_dim=16, num_heads=2, encoder_conv_blocks=1, encoder_attention_blocks=1,
        mixer_blocks=1, decoder_blocks=2, num_experts=4, active_experts=2, expert_dim=8,
        join="none", drop_prob=0.0, gate_noise="none", balance_weight=0.0,
    )  # fmt: skip
    tasks = [
        TaskSpec(name="red", input_net="image", output_net="label", num_outputs=10),
        TaskSpec(name="blue", input_net="text", output_net="text", command_id=3),
    ]
    model = build_model(
        ModelConfig(body=body, nets={"image": image.Config(channels=1)}, vocab_size=50),
        tasks,
        seed=0,
    )
    torch.manual_seed(0)
    for parameter in model.parameters():  # gates start at zero, where choices are ties
        parameter.data += torch.randn(parameter.shape) * 0.1
    config = LAYOUTS[layout].model_copy(update={"activation_checkpointing": True})
    engine = build_engine(config, model=model, optimizer=ADAM)
    trace = []
    for step in range(4):
        task, inputs, targets = real_batch(step)
        rows = slice(engine.rank, None, engine.world_size)
        outputs = engine.forward(
            task=task,
            inputs=inputs[rows],
            input_lengths=torch.full((len(inputs[rows]),), inputs.shape[1]),
            targets=targets[rows],
        )
        loss = cross_entropy(outputs.logits, targets[rows], label_smoothing=0.1)
        share = loss.total / targets.numel() + outputs.auxiliary_loss
        if float(decay):
            decayed = weight_decay_loss(model.trained_by(task), weight=float(decay))
            share = share + decayed / engine.world_size
        engine.backward(share)
        total = loss.total.detach()
        if engine.world_size > 1:
            dist.all_reduce(total)
        stats = engine.step(
            model.owners(task), learning_rates=dict.fromkeys(model.owners(task), 1e-3)
        )
        trace.append((float(total) / targets.numel(), stats.gradient_norm))
    return {"trace": trace, "weights": weights(engine)}


def norms_engine(layout: str, *, seed: int = 0) -> Any:
    """A model with batch norms."""
    body = resnet.Config(channels=1, depth=8, widths=(4, 6, 8))
    tasks = [TaskSpec(name="red", input_net="image_pixels", output_net="linear", num_outputs=10)]
    model = build_model(ModelConfig(family="resnet", body=body), tasks, seed)
    return build_engine(LAYOUTS[layout], model=model, optimizer=ADAM)


def norms_train(engine: Any, *, first: int, last: int) -> None:
    for step in range(first, last):
        _, pictures, classes = real_batch(2 * step)
        rows = slice(engine.rank, None, engine.world_size)
        size = len(pictures[rows])
        outputs = engine.forward(
            task="red",
            inputs=pictures[rows],
            input_lengths=torch.full((size,), 32),
            targets=None,
        )
        loss = cross_entropy(outputs.logits, classes[rows])
        engine.backward(loss.total / classes.numel())
        engine.step(
            engine.model.owners("red"),
            learning_rates=dict.fromkeys(engine.model.owners("red"), 1e-3),
        )


def norms(layout: str, folder: str) -> dict[str, Any]:
    """2 steps, a checkpoint, 2 more; the running statistics that a rank holds, before and after."""
    engine = norms_engine(layout)
    norms_train(engine, first=0, last=2)
    name = "body.blocks.0.conv1.norm.running_mean"
    own = engine.model.get_buffer(name).tolist()
    told = {state.name: state.tensors["weight"].tolist() for state in engine.parameter_states()}
    engine.model_state()
    read = engine.model.get_buffer(name).tolist()
    checkpoint.save(folder, engine=engine, progress=Progress(step=2, cursors={"red": 2}))
    kept = engine.model.get_buffer(name).tolist()
    norms_train(engine, first=2, last=4)
    state = engine.model_state()
    dtypes = {str(value.dtype) for value in state.values()}
    return {
        "own": own,
        "told": told.get(name),
        "read": read,
        "kept": kept,
        "digests": digests(engine),
        "dtypes": sorted(dtypes),
    }


def norms_resume(layout: str, folder: str) -> dict[str, Any]:
    """The last 2 of these steps, from the checkpoint."""
    engine = norms_engine(layout, seed=5)
    ref = checkpoint.latest(folder)
    assert ref is not None
    norms_train(engine, first=checkpoint.restore(ref, engine=engine).step, last=4)
    return {"digests": digests(engine)}


def real_batch(step: int) -> tuple[str, torch.Tensor, torch.Tensor]:
    """6 pictures with classes, or 6 texts with texts."""
    generator = torch.Generator().manual_seed(step)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    if step % 2 == 0:
        return "red", draw(0, 255, 6, 32, 32, 1), draw(0, 10, 6, 1)
    return "blue", draw(4, 50, 6, 9), draw(4, 50, 6, 7)


def main() -> None:
    rank, world_size, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
        )
    results = {}
    for job in sys.argv[5:]:
        name, *arguments = job.split(",")
        results[job] = globals()[name](*arguments)
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
