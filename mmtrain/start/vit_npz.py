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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from mmtrain.start.vit import InitError, Patches, Vit

_MAX_BYTES = 16 * 2**30  # of all arrays: ViT-G/14 has 7
_PREFIXES = ("", "opt/target/")
_HEADS = ("head/", "pre_logits/")
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")

# Ours -> theirs and its axes, inputs before ">" and outputs behind; numbers of the parts in braces
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


def read_npz(path: Path, *, only_shapes: bool = False) -> Vit:
    """The transformer of an `.npz` file.

    Args:
        path: of the file.
        only_shapes: read no weights; tensors are on torch's meta device.

    Raises:
        InitError: not such a file, or one of a transformer that is not a plain ViT; in a line that
            names the array at fault.
    """
    with _one_line(path), zipfile.ZipFile(path) as archive:
        return _Reader(path, archive, only_shapes=only_shapes).vit()


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        why = " ".join(str(error).split())
        raise InitError(f"{path} cannot be read: {why}; fetch it again") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InitError(f"{path} is no whole .npz file: {error}; fetch it again") from None


class _Reader:
    """Arrays of one open file, by their names without a prefix."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, *, only_shapes: bool) -> None:
        self._path, self._archive, self._only_shapes = path, archive, only_shapes
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

    def vit(self) -> Vit:
        """All shapes are checked before the first array is read."""
        rows, columns, channels, dim = self._shape("embedding/kernel", axes=4)
        numbers = {m[1] for m in map(_BLOCK.match, self._members) if m}
        if not numbers:
            raise InitError(f"{self._path} is no plain ViT: it has no Transformer/encoderblock_0")
        in_order = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
        parts = _NUMBERED_IN_ORDER if in_order in self._members else _NUMBERED_BY_KIND
        first = self._names(0, parts)
        _, heads, head_dim = self._shape(first["attention.query.weight"], axes=3)
        sizes = {"D": dim, "H": heads, "K": head_dim}
        sizes["F"] = self._shape(first["mlp.w_in.weight"], axes=2)[1]
        length = self._shape("Transformer/posembed_input/pos_embedding", axes=3)[1]
        side = math.isqrt(max(0, length - 1))
        if side**2 != length - 1 or not side:
            raise InitError(
                f"{self._path} has {length} positions; a class token and a square grid are read"
            )
        wanted = {
            "embedding/kernel": (rows, columns, channels, dim),
            "embedding/bias": (dim,),
            "cls": (1, 1, dim),
            "Transformer/posembed_input/pos_embedding": (1, length, dim),
            "Transformer/encoder_norm/scale": (dim,),
            "Transformer/encoder_norm/bias": (dim,),
        }
        for number in range(len(numbers)):
            for ours, theirs in self._names(number, parts).items():
                axes = _PARTS[ours][1].replace(">", "")
                wanted[theirs] = tuple(sizes[axis] for axis in axes)
        self._check(wanted)
        return self._build(
            [self._names(number, parts) for number in range(len(numbers))], side=side
        )

    def _names(self, number: int, parts: Mapping[str, int]) -> dict[str, str]:
        """Ours -> theirs, of one block."""
        return {
            ours: f"Transformer/encoderblock_{number}/{theirs.format(**parts)}"
            for ours, (theirs, _) in _PARTS.items()
        }

    def _check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in wanted.items():
            if (found := self._shape(name, axes=len(shape))) != shape:
                raise InitError(f"{self._path}: {name} has shape {found}, a plain ViT's is {shape}")
        unread = [
            name for name in self._members if name not in wanted and not name.startswith(_HEADS)
        ]
        if unread:
            raise InitError(f"{self._path} is no plain ViT: it has {_some(unread)} too")

    def _build(self, blocks: Iterable[Mapping[str, str]], *, side: int) -> Vit:
        kernel_YXCD = self._read("embedding/kernel")
        positions_SD = self._read("Transformer/posembed_input/pos_embedding")[0]
        held = [
            {ours: _to_torch(self._read(theirs), _PARTS[ours][1]) for ours, theirs in names.items()}
            for names in blocks
        ]
        return Vit(
            patches=Patches(
                kernel_YXCD.permute(3, 2, 0, 1).unsqueeze(2).contiguous(),
                self._read("embedding/bias"),
                positions_SD[1:].unflatten(0, (1, side, side)),
            ),
            class_token_D=self._read("cls").flatten(),
            class_position_D=positions_SD[0],
            blocks=tuple(held),
            norm={
                "weight": self._read("Transformer/encoder_norm/scale"),
                "bias": self._read("Transformer/encoder_norm/bias"),
            },
            num_heads=self._shapes[next(iter(blocks))["attention.query.bias"]][0],
            layer_norm_eps=1e-6,  # flax's defaults, which the files do not hold
            gelu="tanh",
        )

    def _shape(self, name: str, *, axes: int) -> tuple[int, ...]:
        """The shape of an array by its header."""
        if name not in self._members:
            raise InitError(f"{self._path} lacks {name}; it is no plain ViT, or is incomplete")
        if name not in self._shapes:
            with self._archive.open(self._members[name]) as stream:
                self._shapes[name] = self._header(name, stream)
        if len(self._shapes[name]) != axes:
            raise InitError(
                f"{self._path}: {name} has shape {self._shapes[name]}, a plain ViT's {axes} axes"
            )
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

    def _read(self, name: str) -> Tensor:
        if self._only_shapes:
            return torch.empty(self._shapes[name], device="meta")
        with self._archive.open(self._members[name]) as stream:
            array = np.ascontiguousarray(npy.read_array(stream, allow_pickle=False))
        if array.dtype == np.dtype("V2"):  # so numpy writes bfloat16
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
        return torch.from_numpy(array.astype(np.float32))


def _to_torch(value: Tensor, axes: str) -> Tensor:
    """Outputs before inputs, each in one axis; what has no inputs in one axis."""
    inputs = len(axes.partition(">")[0])
    if not inputs:
        return value.flatten()
    return value.flatten(inputs).flatten(0, inputs - 1).t().contiguous()


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return first + (f" and {len(others)} more" if others else "")
