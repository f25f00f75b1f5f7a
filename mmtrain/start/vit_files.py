"""Trained vision transformers on disk, read into one form.

    FOLDER/config.json + model.safetensors    ViTModel or ViTForImageClassification of Hugging Face,
                                              one file or several with model.safetensors.index.json
    FOLDER or FILE.safetensors                a state dict of timm's VisionTransformer
    FILE.npz                                  of google-research/vision_transformer; see vit_npz.py

Names of parameters say which it is; nothing is unpickled. Names inside `Vit` are those of
`VIT_BLOCK`; a head, a pooler and whatever else a file holds are left out.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmtrain.start.vit import VIT_BLOCK, InitError, Patches, Vit, some
from mmtrain.start.vit_npz import read_npz

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_JSON_BYTES = 64 * 2**20

# Theirs -> ours: of timm, of Hugging Face's files, and of modules of transformers 5.
_WHOLE = {
    "cls_token": "class_token",
    "embeddings.cls_token": "class_token",
    "pos_embed": "positions",
    "embeddings.position_embeddings": "positions",
    "patch_embed.proj": "patch",
    "embeddings.patch_embeddings.projection": "patch",
    "norm": "norm",
    "layernorm": "norm",
}
_BLOCK = re.compile(r"(?:blocks|layers|encoder\.layer)\.(\d+)\.(.+)")
_PARTS = {
    **{"norm1": "norm1", "layernorm_before": "norm1"},
    **{"norm2": "norm2", "layernorm_after": "norm2"},
    "attn.qkv": "attention.qkv",
    **{f"attention.attention.{part}": f"attention.{part}" for part in ("query", "key", "value")},
    **{f"attention.{part[0]}_proj": f"attention.{part}" for part in ("query", "key", "value")},
    **dict.fromkeys(("attn.proj", "attention.output.dense", "attention.o_proj"), "attention.out"),
    **dict.fromkeys(("mlp.fc1", "intermediate.dense"), "mlp.w_in"),
    **dict.fromkeys(("mlp.fc2", "output.dense"), "mlp.w_out"),
}


def is_vit(path: Path) -> bool:
    """Whether a path looks like a file or folder that `read_vit` reads, or refuses for a reason."""
    if path.is_file():
        return path.suffix in (".safetensors", ".npz", *_PICKLED)
    names = [CONFIG, WEIGHTS, INDEX]
    is_pickled = any(file.suffix in _PICKLED for file in path.glob("*"))
    return path.is_dir() and (any((path / name).is_file() for name in names) or is_pickled)


def read_vit(path: Path, *, only_shapes: bool = False) -> Vit:
    """The transformer at a path.

    Args:
        path: folder or file, as the module says.
        only_shapes: read no weights; tensors are on torch's meta device.

    Raises:
        InitError: not such a file, or one of a transformer that is not a plain ViT.
    """
    if path.suffix == ".npz" and path.is_file():
        found, config = read_npz(path, only_shapes=only_shapes)
    else:
        config = _read_config(path)
        theirs: dict[str, Tensor] = {}
        for file in _weight_files(path):
            theirs |= _read_tensors(file, only_shapes=only_shapes)
        found = _rename(theirs, path=path)
    return _to_vit(found, config=config, path=path)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG
    if not path.is_dir() or not file.is_file():
        return {}
    config = _read_json(file)
    kind = config.get("model_type", "vit")
    if kind != "vit":
        raise InitError(f"{file} is of model_type {kind!r}; `--init-from` reads 'vit'")
    return config


def _read_json(file: Path) -> dict[str, Any]:
    if file.stat().st_size > _MAX_JSON_BYTES:
        raise InitError(f"{file} has {file.stat().st_size} bytes, at most {_MAX_JSON_BYTES}")
    try:
        held = json.loads(file.read_bytes())
    except ValueError as error:
        raise InitError(f"{file} is not JSON: {error}") from None
    if not isinstance(held, dict):
        raise InitError(f"{file} holds no JSON object")
    return held


def _weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises:
        InitError: there are none, or only pickled ones.
    """
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    if (path / INDEX).is_file():
        return _files_of_index(path / INDEX)
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    folder = [path] if path.is_file() else sorted(path.glob("*"))
    pickled = [file for file in folder if file.suffix in _PICKLED]
    if pickled:
        raise InitError(
            f"{pickled[0]} is not safetensors, and pickles are not read: they run code. Convert "
            "it: safetensors.torch.save_file(state_dict, 'model.safetensors'), in a process that "
            "trusts the file; with transformers, model.save_pretrained(folder)"
        )
    raise InitError(f"{path} has neither {WEIGHTS} nor {INDEX}")


def _files_of_index(index: Path) -> list[Path]:
    shards = _read_json(index).get("weight_map", {})
    names = sorted({str(name) for name in shards.values()} if isinstance(shards, dict) else ())
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise InitError(f"{index} lists {name!r}, which is not a file of its folder")
    if not names:
        raise InitError(f"{index} lists no weights")
    return [index.parent / name for name in names]


def _read_tensors(file: Path, *, only_shapes: bool) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as held:
            if not only_shapes:
                return {name: held.get_tensor(name).float() for name in held.keys()}  # noqa: SIM118  # not a dict
            return {
                name: torch.empty(held.get_slice(name).get_shape(), device="meta")
                for name in held.keys()  # noqa: SIM118
            }
    except (SafetensorError, OSError) as error:
        raise InitError(f"{file} cannot be read: {error}; fetch or convert it again") from None


def _rename(found: Mapping[str, Tensor], *, path: Path) -> dict[str, Tensor]:
    """Tensors under our names, from whichever of the layouts they are in."""
    renamed: dict[str, Tensor] = {}
    unread: list[str] = []
    for name, value in found.items():
        bare = re.sub(r"^(?:vit|module|model)\.", "", name)
        block = _BLOCK.fullmatch(bare)
        part, _, kind = (block[2] if block else bare).rpartition(".")
        if block and part in _PARTS:
            renamed[f"blocks.{block[1]}.{_PARTS[part]}.{kind}"] = value
        elif block:
            unread.append(bare)
        elif bare in _WHOLE:
            renamed[_WHOLE[bare]] = value
        elif part in _WHOLE:
            renamed[f"{_WHOLE[part]}.{kind}"] = value
    if "patch.weight" not in renamed:
        raise InitError(
            f"{path} holds no vision transformer of Hugging Face (ViTModel, "
            f"ViTForImageClassification) or timm; it has {some(found)}"
        )
    if unread:
        raise InitError(f"{path} is no plain ViT: its blocks have {some(unread)}")
    return renamed


def _to_vit(found: Mapping[str, Tensor], *, config: Mapping[str, Any], path: Path) -> Vit:
    kernel_DCYX = _of(found, "patch.weight", path=path, axes=4)
    dim = kernel_DCYX.shape[0]
    positions = _of(found, "positions", path=path, axes=3)[0]
    grid = _grid(positions.shape[0] - 1, kernel_DCYX, config=config, path=path)
    is_timm = any(name.endswith("qkv.weight") for name in found)
    return Vit(
        patches=Patches(
            kernel_DCYX.unsqueeze(2),
            found.get("patch.bias", torch.zeros_like(positions[0])),
            positions[1:].unflatten(0, (1, *grid)),
        ),
        class_token_D=_of(found, "class_token", path=path, axes=3).reshape(dim),
        class_position_D=positions[0],
        blocks=tuple(_block(found, number, path=path) for number in range(_num_blocks(found))),
        norm={kind: _of(found, f"norm.{kind}", path=path, axes=1) for kind in ("weight", "bias")},
        num_heads=config.get("num_attention_heads"),
        layer_norm_eps=config.get("layer_norm_eps", 1e-6 if is_timm else None),
        gelu=_gelu(config.get("hidden_act", "gelu"), path=path),
    )


def _of(found: Mapping[str, Tensor], name: str, *, path: Path, axes: int) -> Tensor:
    if name not in found or found[name].ndim != axes:
        shown = tuple(found[name].shape) if name in found else "not there"
        raise InitError(f"{path} is no plain ViT with a class token: {name} is {shown}")
    return found[name]


def _num_blocks(found: Iterable[str]) -> int:
    numbers = {int(name.split(".")[1]) for name in found if name.startswith("blocks.")}
    return max(numbers, default=-1) + 1


def _block(found: Mapping[str, Tensor], number: int, *, path: Path) -> dict[str, Tensor]:
    """One block by `VIT_BLOCK`; a projection without bias has one of zeros, which is the same."""
    prefix = f"blocks.{number}."
    block = {name[len(prefix) :]: value for name, value in found.items() if name.startswith(prefix)}
    for kind in ("weight", "bias"):
        if (joined := block.pop(f"attention.qkv.{kind}", None)) is not None:
            names = [f"attention.{part}.{kind}" for part in ("query", "key", "value")]
            block |= dict(zip(names, joined.chunk(3), strict=True))
    for name in VIT_BLOCK:
        weight = block.get(name.replace(".bias", ".weight"))
        if name not in block and weight is not None and name.endswith(".bias"):
            block[name] = weight.new_zeros(weight.shape[0])
        if name not in block:
            raise InitError(f"{path} lacks {prefix}{name}; it is no plain ViT, or is incomplete")
    return block


def _grid(
    num_patches: int, kernel_DCYX: Tensor, *, config: Mapping[str, Any], path: Path
) -> tuple[int, int]:
    """Rows and columns of the patches: from the picture's size, or as a square."""
    size = config.get("image_size")
    if isinstance(size, int):
        size = (size, size)
    if isinstance(size, list | tuple) and len(size) == 2:
        rows, columns = (
            side // patch for side, patch in zip(size, kernel_DCYX.shape[2:], strict=True)
        )
        if rows * columns == num_patches:
            return rows, columns
    side = math.isqrt(num_patches)
    if side * side != num_patches or not side:
        raise InitError(
            f"{path} has {num_patches + 1} positions; a class token and a square grid are read"
        )
    return side, side


def _gelu(name: str, *, path: Path) -> str:
    forms = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}
    if name not in forms:
        raise InitError(f"{path} has hidden_act {name!r}; the blocks have one of {sorted(forms)}")
    return forms[name]
