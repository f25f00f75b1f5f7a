"""Weights of a plain vision transformer in a model whose family is made of its blocks, and back.

Such a family's module has `vit_blocks(config, net)`: the names of the blocks that an input of a
modality net passes, first to last. Blocks that all modalities share are loaded once; those that a
modality has for itself are loaded for each. Likhosherstov et al., arXiv:2111.12993, Sec. 3.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from mmtrain.layers.inflation import Inflation, fit_kernel, fit_positions
from mmtrain.models.config import load_family
from mmtrain.models.model import MultiTaskModel
from mmtrain.start.vit import InitError, Patches, Vit

NORM = "body.norm"


def vit_blocks_of(family: str) -> Callable[[Any, str], list[str]] | None:
    """The family's `vit_blocks`; None where its body is not made of a transformer's blocks."""
    return getattr(load_family(family), "vit_blocks", None)


def to_vits(model: MultiTaskModel, state: Mapping[str, Tensor]) -> dict[str, Vit]:
    """The transformer that each modality net's inputs pass, by net.

    Args:
        model: tells names and grids; its weights are not read.
        state: weights by parameter name.
    """
    body: Any = model.config.body
    vits: dict[str, Vit] = {}
    for net, stem in model.stems.items():
        tokens = f"stems.{net}.tokens"
        vits[net] = Vit(
            patches=_to_patches(stem, state, net=net),
            class_token_D=state[f"{tokens}.class_token"],
            class_position_D=state[f"{tokens}.positions"][0],
            blocks=tuple(_under(state, block) for block in _blocks(model, net)),
            norm=_under(state, NORM),
            num_heads=body.num_heads,
            layer_norm_eps=body.layer_norm_eps,
            gelu=body.gelu,
        )
    return vits


def from_vits(
    model: MultiTaskModel, vits: Mapping[str, Vit], *, inflation: Inflation
) -> dict[str, Tensor]:
    """Weights for a model's stems, own and shared blocks and last norm, by parameter name.

    A modality net starts from the transformer of its own name, or else from that of another: a
    picture's before a clip's. What has no counterpart (experts from a wide layer, positions of
    text) is left out.

    Raises:
        InitError: sizes differ; both sides are named.
    """
    state: dict[str, Tensor] = {}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for net, stem in reversed([*model.stems.items()]):  # the first net's transformer is the body's
        vit = vits[_nearest(net, stem, vits)]
        _check_sizes(model, vit, net=net)
        for name, block in zip(_blocks(model, net), vit.blocks, strict=True):
            state |= {f"{name}.{part}": value for part, value in block.items()}
        state |= {f"{NORM}.{kind}": value for kind, value in vit.norm.items()}
        state |= _from_patches(stem, vit, net=net, inflation=inflation)
    known = {name: value for name, value in state.items() if name in shapes}
    for name, value in known.items():
        if tuple(value.shape) != shapes[name]:
            raise InitError(f"{name} has shape {tuple(value.shape)}, the model {shapes[name]}")
    return known


def differences(model: MultiTaskModel, vits: Mapping[str, Vit]) -> list[str]:
    """Settings without weights in which the model computes otherwise than the transformer did."""
    body: Any = model.config.body
    vit = next(iter(vits.values()))
    pairs = {
        "layer_norm_eps": (vit.layer_norm_eps, body.layer_norm_eps),
        "gelu": (vit.gelu, body.gelu),
    }
    notes = [
        f"model.body.{name} is {ours!r}, the weights were trained with {theirs!r}"
        for name, (theirs, ours) in pairs.items()
        if theirs is not None and theirs != ours
    ]
    if vit.num_heads is None and body.model_dim != 64 * body.num_heads:
        usual = f"usual are heads of 64, which makes {body.model_dim / 64:g}"
        notes.append(f"the weights name no number of heads; {body.num_heads} are used, {usual}")
    return notes


def _blocks(model: MultiTaskModel, net: str) -> list[str]:
    vit_blocks = vit_blocks_of(model.config.family)
    assert vit_blocks is not None
    return vit_blocks(model.config.body, net)


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name[len(start) :]: held for name, held in state.items() if name.startswith(start)}


def _to_patches(stem: nn.Module, state: Mapping[str, Tensor], *, net: str) -> Patches | None:
    if (shape := _kernel_shape(stem)) is None:
        return None
    weight = state[f"stems.{net}.embed.weight"]
    return Patches(
        kernel_DCTYX=weight.reshape(weight.shape[0], *shape),
        bias_D=state[f"stems.{net}.embed.bias"],
        positions_TYXD=state[f"stems.{net}.tokens.positions"][1:].unflatten(0, _grid(stem)),
    )


def _from_patches(
    stem: nn.Module, vit: Vit, *, net: str, inflation: Inflation
) -> dict[str, Tensor]:
    state = {f"stems.{net}.tokens.class_token": vit.class_token_D}
    shape = _kernel_shape(stem)
    if shape is None or vit.patches is None:
        return state
    try:
        kernel = fit_kernel(vit.patches.kernel_DCTYX, shape=shape, inflation=inflation)
    except ValueError as error:
        raise InitError(f"patches of {net}: {error}; set model.nets.{net}.channels") from None
    grid = fit_positions(vit.patches.positions_TYXD, shape=_grid(stem))
    table = stem.tokens.positions.new_empty(stem.tokens.positions.shape, device=grid.device)  # type: ignore[union-attr]  # Module.__getattr__
    table[0], table[1:] = vit.class_position_D, grid.flatten(0, 2)
    embed: Any = stem.embed
    return state | {
        f"stems.{net}.embed.weight": kernel.reshape(embed.weight.shape),
        f"stems.{net}.embed.bias": vit.patches.bias_D,
        f"stems.{net}.tokens.positions": table,
    }


def _kernel_shape(stem: nn.Module) -> tuple[int, ...] | None:
    """(C, T, Y, X) of a stem's patches, T = 1 without time; None: it takes no grid."""
    embed: Any = getattr(stem, "embed", None)
    if embed is None:
        return None
    channels, *patch = embed.weight.shape[1:]
    return (channels, *((1,) if len(patch) == 2 else ()), *patch)


def _grid(stem: nn.Module) -> tuple[int, int, int]:
    """(T, Y, X) of a stem's position table."""
    held: Any = stem
    patch = held.embed.weight.shape[2:]
    rows, columns = [
        size // step for size, step in zip(held.size[: len(patch)], patch, strict=True)
    ][-2:]
    return (held.tokens.positions.shape[0] - 1) // (rows * columns), rows, columns


def _nearest(net: str, stem: nn.Module, vits: Mapping[str, Vit]) -> str:
    """The transformer of the same net; else one of a grid, without time, of as many channels."""
    shape = _kernel_shape(stem)

    def distance(name: str) -> tuple[bool, bool, bool, bool]:
        patches = vits[name].patches
        if patches is None:
            return (name != net, True, True, True)
        channels, frames = patches.kernel_DCTYX.shape[1:3]
        return (name != net, False, frames > 1, shape is not None and channels != shape[0])

    return min(vits, key=distance)


def _check_sizes(model: MultiTaskModel, vit: Vit, *, net: str) -> None:
    """Refuses a transformer of other sizes, with all of them in one line."""
    body: Any = model.config.body
    wide = [block["mlp.w_in.weight"].shape[0] for block in vit.blocks if "mlp.w_in.weight" in block]
    theirs = {"model_dim": vit.class_token_D.shape[0], "num_layers": len(vit.blocks)}
    theirs |= {"mlp_dim": wide[0]} if wide and not body.units else {}
    theirs |= {"num_heads": vit.num_heads} if vit.num_heads else {}
    if any(size != getattr(body, name) for name, size in theirs.items()):
        raise InitError(
            f"the weights have {', '.join(f'{name} {size}' for name, size in theirs.items())}; "
            "the recipe's model.body has "
            f"{', '.join(f'{name} {getattr(body, name)}' for name in theirs)}. "
            "Start from other weights, or give the recipe the same sizes: "
            + " ".join(f"--set model.body.{name}={size}" for name, size in theirs.items())
        )
