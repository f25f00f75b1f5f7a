"""Vision transformers as google-research/vision_transformer publishes them: arrays in an `.npz`.

    cls (1, 1, D)    embedding/kernel (Y, X, C, D)    Transformer/posembed_input/pos_embedding
    Transformer/encoderblock_<n>/MultiHeadDotProductAttention_1/query/kernel (D, H, K)    and so on

Files by newer code number the parts of a block by kind, and files of whole training states have
`opt/target/` before every name. Headers are read first: an array that is missing, of another shape
or pickled is refused by its own name before any values are read.
"""

import math
import re
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from mmtrain.start.vit import InitError, some

_MAX_BYTES = 16 * 2**30  # of all arrays: ViT-G/14 has 7
_PREFIXES = ("", "opt/target/")
_HEADS = ("head/", "pre_logits/")
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")

# Ours -> theirs and its axes, a letter for a size that is the same wherever it stands; inputs
# before ">" and outputs behind. What has no ">" keeps its axes. Part numbers are in braces.
_WHOLE = {
    "patch.weight": ("embedding/kernel", "YXCD"),
    "patch.bias": ("embedding/bias", ">D"),
    "class_token": ("cls", "11D"),
    "positions": ("Transformer/posembed_input/pos_embedding", "1LD"),
    "norm.weight": ("Transformer/encoder_norm/scale", ">D"),
    "norm.bias": ("Transformer/encoder_norm/bias", ">D"),
}
_PARTS = {
    "norm1.weight": ("LayerNorm_{norm1}/scale", ">D"),
    "norm1.bias": ("LayerNorm_{norm1}/bias", ">D"),
    **{
        f"attention.{part}.{ours}": (
            f"MultiHeadDotProductAttention_{{attention}}/{part}/{kind}",
            to,
        )
        for part in ("query", "key", "value")
        for ours, kind, to in (("weight", "kernel", "D>HK"), ("bias", "bias", ">HK"))
    },
    "attention.out.weight": ("MultiHeadDotProductAttention_{attention}/out/kernel", "HK>D"),
    "attention.out.bias": ("MultiHeadDotProductAttention_{attention}/out/bias", ">D"),
    "norm2.weight": ("LayerNorm_{norm2}/scale", ">D"),
    "norm2.bias": ("LayerNorm_{norm2}/bias", ">D"),
    "mlp.w_in.weight": ("MlpBlock_{mlp}/Dense_0/kernel", "D>F"),
    "mlp.w_in.bias": ("MlpBlock_{mlp}/Dense_0/bias", ">F"),
    "mlp.w_out.weight": ("MlpBlock_{mlp}/Dense_1/kernel", "F>D"),
    "mlp.w_out.bias": ("MlpBlock_{mlp}/Dense_1/bias", ">D"),
}
_NUMBERED_IN_ORDER = {"norm1": 0, "attention": 1, "norm2": 2, "mlp": 3}
_NUMBERED_BY_KIND = {"norm1": 0, "attention": 0, "norm2": 1, "mlp": 0}


def read_npz(path: Path, *, only_shapes: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an `.npz` file by our names, and its settings by Hugging Face's.

    Args:
        path: of the file.
        only_shapes: read no weights; tensors are on torch's meta device.

    Raises:
        InitError: not such a file, or one of a transformer that is not a plain ViT; in a line that
            names the array at fault.
    """
    with _one_line(path), zipfile.ZipFile(path) as archive:
        reader = _Reader(path, archive)
        arrays = reader.arrays()
        found: dict[str, Tensor] = {}
        for ours, (theirs, axes) in arrays.items():
            shape = reader.shape(theirs)
            value = torch.empty(shape, device="meta") if only_shapes else reader.read(theirs)
            found[ours] = _to_torch(value, axes)
    # The file does not hold the last two: they are flax's defaults.
    heads = reader.shape(arrays["blocks.0.attention.query.bias"][0])[0]
    return found, {
        "num_attention_heads": heads, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh",
    }  # fmt: skip


@contextmanager
def _one_line(path: Path) -> Generator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        why = " ".join(str(error).split())
        raise InitError(f"{path} cannot be read: {why}; fetch it again") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InitError(f"{path} is no whole .npz file: {error}; fetch it again") from None


class _Reader:
    """Arrays of one open file, by their names without a prefix."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
        prefix = next((p for p in _PREFIXES if f"{p}embedding/kernel" in members), "")
        self._members = {
            name.removeprefix(prefix): member
            for name, member in members.items()
            if name.startswith(prefix)
        }
        size = sum(member.file_size for member in self._members.values())
        if size > _MAX_BYTES:
            raise InitError(f"{path} holds arrays of {size} bytes, at most {_MAX_BYTES}")
        self._shapes: dict[str, tuple[int, ...]] = {}

    def arrays(self) -> dict[str, tuple[str, str]]:
        """Ours -> theirs and its axes, of a plain ViT: all are there, with sizes that agree."""
        in_order = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
        numbers = _NUMBERED_IN_ORDER if in_order in self._members else _NUMBERED_BY_KIND
        blocks = {match[1] for match in map(_BLOCK.match, self._members) if match}
        arrays = _WHOLE | {
            f"blocks.{block}.{ours}": (
                f"Transformer/encoderblock_{block}/{theirs.format(**numbers)}", axes,
            )
            for block in range(max(1, len(blocks)))
            for ours, (theirs, axes) in _PARTS.items()
        }  # fmt: skip
        sizes = {"1": 1}
        for theirs, axes in arrays.values():
            letters = axes.replace(">", "")
            shape = self.shape(theirs)
            if len(shape) != len(letters):
                wanted = f"{len(letters)} axes"
            else:
                fitting = [sizes.setdefault(*axis) for axis in zip(letters, shape, strict=True)]
                wanted = f"is {tuple(fitting)}" if tuple(fitting) != shape else ""
            if wanted:
                raise InitError(f"{self._path}: {theirs} has shape {shape}, a plain ViT's {wanted}")
        unread = self._members.keys() - {theirs for theirs, _ in arrays.values()}
        if unread := [name for name in unread if not name.startswith(_HEADS)]:
            raise InitError(f"{self._path} is no plain ViT: it has {some(unread)} too")
        return arrays

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, by its header."""
        if name not in self._members:
            raise InitError(f"{self._path} lacks {name}; it is no plain ViT, or is incomplete")
        if name not in self._shapes:
            with self._archive.open(self._members[name]) as stream:
                self._shapes[name] = self._header(name, stream)
        return self._shapes[name]

    def _header(self, name: str, stream: IO[bytes]) -> tuple[int, ...]:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise InitError(
                f"{self._path}: {name} is of .npy version {version}; 1.0 or 2.0 is read"
            )
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
        if dtype.hasobject:
            raise InitError(
                f"{self._path}: {name} is pickled, and pickles are not read: they run code. Save "
                "arrays of numbers with numpy.savez, in a process that trusts the file"
            )
        if dtype.kind != "f" and dtype != np.dtype("V2"):
            raise InitError(f"{self._path}: {name} is {dtype}; floating-point numbers are read")
        if stream.tell() + math.prod(shape) * dtype.itemsize > self._members[name].file_size:
            raise InitError(f"{self._path}: {name} is cut short; fetch the file again")
        return shape

    def read(self, name: str) -> Tensor:
        """The values of an array, fp32."""
        with self._archive.open(self._members[name]) as stream:
            array = np.ascontiguousarray(npy.read_array(stream, allow_pickle=False))
        if array.dtype == np.dtype("V2"):  # so numpy writes bfloat16
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
        return torch.from_numpy(array.astype(np.float32))


def _to_torch(value: Tensor, axes: str) -> Tensor:
    """Outputs before inputs, each in one axis; what has no inputs in one axis."""
    if axes == "YXCD":
        return value.permute(3, 2, 0, 1).contiguous()
    inputs, split, _ = axes.partition(">")
    if not split:
        return value
    if not inputs:
        return value.flatten()
    return value.flatten(len(inputs)).flatten(0, len(inputs) - 1).t().contiguous()
