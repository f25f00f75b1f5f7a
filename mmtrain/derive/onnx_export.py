"""ONNX: each task's scores as a graph that runs without torch, checked against the model.

A file holds stem, body and head of one task. It takes `inputs` and `input_lengths` as the task's
`collate` makes them, of any number of examples, and gives `logits`. What decodes token after token
is no such graph. A mixture of experts is written with all its experts at work (`DenseMoE`).
"""

import copy
import importlib.util
import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmtrain.bundle import BundleTask
from mmtrain.cut.examples import TaskInputs
from mmtrain.files import BUNDLE
from mmtrain.layers.dense_moe import with_dense_experts
from mmtrain.models.model import MultiTaskModel
from mmtrain.predict.predictor import Predictor
from pipelines import modalities
from pipelines.errors import MMTrainError

logger = logging.getLogger(__name__)

OPSET = 20
TOLERANCE = 1e-4  # of a score, times one plus its size, between torch and ONNX Runtime
_TRACED, _CHECKED = 2, (1, 3)  # examples in a batch
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class OnnxError(MMTrainError):
    """A model or task that cannot become a graph, or a graph that answers otherwise."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A task's graph: file, bytes, and the largest difference of a score from the model's."""

    task: str
    path: Path
    num_bytes: int
    difference: float


class TaskGraph(nn.Module):
    """One task of a model as a function of arrays alone."""

    def __init__(self, model: MultiTaskModel, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, inputs: Tensor, input_lengths: Tensor) -> Tensor:
        return TaskInputs(self.task, inputs, input_lengths).forward(self.model).logits


def export_model(
    uri: str,
    *,
    out: Path,
    graphs: bool,
    tasks: Sequence[str] = (),
    tracking_uri: str | None = None,
) -> tuple[OnnxFile, ...]:
    """Writes the bundle of a model to `out`, and if asked for the graphs of its tasks.

    Args:
        uri: bundle folder, run folder, or models:/NAME@ALIAS.
        out: folder; a bundle that is there is replaced.
        graphs: whether each task is written as a graph too.
        tasks: tasks of the graphs; none: all that choose from a fixed number of scores.
        tracking_uri: the registry, for `models:/`; None: as MLflow is set up.

    Raises:
        BundleError: there is no such bundle, or it changed.
        OnnxError: see `export_onnx`.
    """
    predictor = Predictor.load(uri, device="cpu", tracking_uri=tracking_uri)
    files = export_onnx(predictor, out=out, tasks=tasks) if graphs else ()
    predictor.bundle.save(out / BUNDLE)
    return files


def export_onnx(
    predictor: Predictor, *, out: Path, tasks: Sequence[str] = ()
) -> tuple[OnnxFile, ...]:
    """Writes TASK.onnx for each task, and runs each in ONNX Runtime beside the model.

    Args:
        predictor: the model, on the CPU.
        out: folder.
        tasks: tasks to write; none: all that choose from a fixed number of scores.

    Raises:
        OnnxError: packages are missing; a task decodes sequences, or none does not; a graph
            cannot be traced, or its scores differ.
        UnknownNameError: the model has no such task.
    """
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise OnnxError(f"ONNX needs {', '.join(missing)}; pip install {' '.join(missing)}")
    fixed = [name for name, task in predictor.tasks.items() if task.spec.num_outputs is not None]
    decoding = [name for name in predictor.tasks if name not in fixed]
    if not fixed:
        raise OnnxError(
            f"all tasks decode token after token ({', '.join(decoding)}), which is no graph; "
            "export a bundle without --onnx"
        )
    for name in tasks:
        if predictor.task(name).spec.num_outputs is None:
            raise OnnxError(
                f"task {name} decodes token after token, which is no graph; "
                f"tasks that can be written: {', '.join(fixed)}"
            )
    if decoding and not tasks:
        logger.warning("left out, for they decode token after token: %s", ", ".join(decoding))
    out.mkdir(parents=True, exist_ok=True)
    return tuple(_write(predictor, name, out=out) for name in tasks or fixed)


def _write(predictor: Predictor, task: str, *, out: Path) -> OnnxFile:
    path = out / f"{task}.onnx"
    graph = TaskGraph(predictor.model, task).eval()
    dense = with_dense_experts(copy.deepcopy(graph))
    example = example_batch(predictor, task, num_examples=_TRACED)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        graph(*example)  # what layers compute once and keep must not be a tracer's tensors
    try:
        with _quiet(), torch.inference_mode(mode=False), torch.no_grad():
            program = torch.onnx.export(
                dense,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=["inputs", "input_lengths"],
                output_names=["logits"],
                dynamic_shapes={"inputs": {0: batch}, "input_lengths": {0: batch}},
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise OnnxError(f"task {task} cannot be written as a graph: {reason}") from error
    assert program is not None, "dynamo=True gives a program"
    program.save(str(path), external_data=False)
    difference = _difference(predictor, graph, path, task=task)
    logger.info("wrote %s: scores within %.1e of the model's", path, difference)
    return OnnxFile(task, path, path.stat().st_size, difference)


def _difference(predictor: Predictor, graph: TaskGraph, path: Path, *, task: str) -> float:
    """Largest difference of a score from the model's, at batches of other sizes than traced.

    Raises:
        OnnxError: it is above the tolerance.
    """
    import onnxruntime  # of the extra "onnx"

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for size in _CHECKED:
        inputs, lengths = example_batch(predictor, task, num_examples=size)
        with torch.no_grad():
            expected = graph(inputs, lengths).numpy()
        feeds = {"inputs": inputs.numpy(), "input_lengths": lengths.numpy()}
        (found,) = session.run(None, feeds)
        largest = max(largest, float(np.abs(found - expected).max()))
        if not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            path.unlink()
            raise OnnxError(
                f"task {task}: ONNX Runtime's scores differ by {largest:.2g} from the model's, "
                f"above {TOLERANCE:g}; {path} was removed"
            )
    return largest


def example_batch(predictor: Predictor, task: str, *, num_examples: int) -> tuple[Tensor, Tensor]:
    """Noise of the shape of a task's inputs, with its lengths (B,)."""
    known: BundleTask = predictor.task(task)
    encode = modalities.load(known.inputs.modality).encode
    array = encode(known.inputs.example(), feature=known.inputs, vocabulary=predictor.vocabulary)
    rng = np.random.default_rng(num_examples)
    if array.dtype == np.uint8:
        arrays = rng.integers(0, 256, size=(num_examples, *array.shape), dtype=np.uint8)
    elif array.dtype == np.int32:  # token ids: any other order of the same ones
        arrays = np.stack([rng.permutation(array) for _ in range(num_examples)])
    else:
        arrays = rng.standard_normal((num_examples, *array.shape)).astype(array.dtype)
    return predictor.to_batch(known.inputs, list(arrays))


@contextmanager
def _quiet() -> Generator[None]:
    """Within, the exporter (torch.onnx, onnxscript, onnx_ir) does not warn of what it tries."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
