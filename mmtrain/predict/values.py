"""Values that are predicted from: which tasks answer them, and how they become arrays."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmtrain.bundle import BundleTask
from pipelines import modalities
from pipelines.errors import BadExampleError, MMTrainError, UnknownNameError
from pipelines.vocabulary import Vocabulary

RawValue = str | bytes | Path
Value = RawValue | np.ndarray | BadExampleError  # or a stored array, or why there is no value


class PredictionError(MMTrainError):
    """A value cannot be predicted from; names it and says why."""


def choose_tasks(
    tasks: Mapping[str, BundleTask],
    *,
    task: str | None = None,
    modality: str | None = None,
    files: Sequence[object] = (),
) -> tuple[str, ...]:
    """Names of the tasks that answer: the one named, or all of a modality.

    Args:
        tasks: of the model.
        task: the one named; None: all of the modality.
        modality: of the inputs; None where the model takes one alone, or the files' names say it.
        files: the inputs; what are no paths say nothing.

    Raises:
        UnknownNameError: the model has no such task or modality.
        PredictionError: the model takes several modalities and none is named.
    """
    if task is not None:
        if task not in tasks:
            raise UnknownNameError("task of the model", task, tuple(tasks))
        return (task,)
    known = tuple(dict.fromkeys(one.inputs.modality for one in tasks.values()))
    modality = modality or (known[0] if len(known) == 1 else None)
    if modality is None and (named := modalities.named_by_files(files)) in known:
        modality = named
    if modality is None:
        raise PredictionError(
            f"the model takes {', '.join(known)}; name the task (--task) or the modality of the "
            "inputs (--modality)"
        )
    if modality not in known:
        raise UnknownNameError("modality of the model", modality, known)
    return tuple(name for name, one in tasks.items() if one.inputs.modality == modality)


def encode_value(
    value: Value, *, task: BundleTask, vocabulary: Vocabulary | None, folder: Path = Path()
) -> tuple[str | bytes, np.ndarray]:
    """A value as text or a file's bytes, empty of an array, and as the model takes it.

    Args:
        value: a text or class name, or where inputs are files, a path or a file's bytes; or an
            array of a built split.
        task: whose input it is.
        vocabulary: of the model.
        folder: that a path is relative to.

    Raises:
        BadExampleError: it cannot be read, or is such an error.
    """
    if isinstance(value, BadExampleError):
        raise value
    if isinstance(value, np.ndarray):
        return b"", task.inputs.finish(value)
    modality = task.inputs.modality
    try:
        if modalities.is_written(modality):
            contents = value.read_bytes() if isinstance(value, Path) else value
            raw = contents.decode("utf-8") if isinstance(contents, bytes) else contents
        else:
            raw = value if isinstance(value, bytes) else (folder / value).read_bytes()
    except UnicodeDecodeError:
        raise BadExampleError("not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise BadExampleError(str(error)) from None
    encode = modalities.load(modality).encode
    return raw, encode(raw, feature=task.inputs, vocabulary=vocabulary)


def unreadable(value: RawValue, *, task: BundleTask, reason: BadExampleError) -> PredictionError:
    """The error of a value that cannot be read as the input of a task."""
    shown = f"{len(value)} bytes" if isinstance(value, bytes) else repr(str(value)[:80])
    return PredictionError(f"{shown}, as {task.inputs.modality} of {task.spec.name}: {reason}")
