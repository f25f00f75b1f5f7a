"""A small random vision transformer of Hugging Face's, and its weights as others have them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification


def hugging_face(**changes: Any) -> ViTConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    pictures = {"intermediate_size": 24, "image_size": 16, "patch_size": 8}
    return ViTConfig(**{**sizes, **pictures, **changes})


def random_vit(**changes: Any) -> ViTForImageClassification:
    """A random ViT of Hugging Face's, no weight of which is zero or one."""
    torch.manual_seed(0)
    model = ViTForImageClassification(hugging_face(num_labels=3, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    return model


def to_timm(vit: ViTForImageClassification) -> dict[str, Tensor]:
    """The same weights under timm 1.0's names: query, key and value in one matrix."""
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "layernorm": "norm",
        "layers": "blocks",
        "attention.o_proj": "attn.proj",
    }
    found: dict[str, Tensor] = {}
    for name, value in vit.vit.state_dict().items():
        for theirs, timms in names.items():
            name = name.replace(theirs, timms)
        found[name] = value
    for number in range(3):
        for kind in ("weight", "bias"):
            parts = [found.pop(f"blocks.{number}.attention.{part}_proj.{kind}") for part in "qkv"]
            found[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
    return {name: value.contiguous() for name, value in found.items()}


def to_npz(vit: ViTForImageClassification, *, by_kind: bool = False) -> dict[str, np.ndarray]:
    """The same weights as google-research/vision_transformer names and shapes them.

    `by_kind`: the parts of a block numbered by kind, as newer code does, and not in their order.
    """
    state = {name: value.detach().numpy() for name, value in vit.vit.state_dict().items()}
    heads, dim = vit.config.num_attention_heads, vit.config.hidden_size
    kernel = state["embeddings.patch_embeddings.projection.weight"]
    found = {
        "cls": state["embeddings.cls_token"],
        "embedding/kernel": kernel.transpose(2, 3, 1, 0),
        "embedding/bias": state["embeddings.patch_embeddings.projection.bias"],
        "Transformer/posembed_input/pos_embedding": state["embeddings.position_embeddings"],
        "Transformer/encoder_norm/scale": state["layernorm.weight"],
        "Transformer/encoder_norm/bias": state["layernorm.bias"],
        "head/kernel": np.zeros((dim, 3), np.float32),
        "head/bias": np.zeros(3, np.float32),
    }
    first, attention, second, mlp = (0, 0, 1, 0) if by_kind else (0, 1, 2, 3)
    for number in range(vit.config.num_hidden_layers):
        theirs, ours = f"layers.{number}", f"Transformer/encoderblock_{number}"
        for norm, name in ((first, "layernorm_before"), (second, "layernorm_after")):
            found[f"{ours}/LayerNorm_{norm}/scale"] = state[f"{theirs}.{name}.weight"]
            found[f"{ours}/LayerNorm_{norm}/bias"] = state[f"{theirs}.{name}.bias"]
        attends = f"{ours}/MultiHeadDotProductAttention_{attention}"
        for part in ("query", "key", "value"):
            held = f"{theirs}.attention.{part[0]}_proj"
            weight, bias = state[f"{held}.weight"], state[f"{held}.bias"]
            found[f"{attends}/{part}/kernel"] = weight.T.reshape(dim, heads, -1)
            found[f"{attends}/{part}/bias"] = bias.reshape(heads, -1)
        out = state[f"{theirs}.attention.o_proj.weight"]
        found[f"{attends}/out/kernel"] = out.T.reshape(heads, -1, dim)
        found[f"{attends}/out/bias"] = state[f"{theirs}.attention.o_proj.bias"]
        for layer in (0, 1):
            dense, held = f"{ours}/MlpBlock_{mlp}/Dense_{layer}", f"{theirs}.mlp.fc{layer + 1}"
            found[f"{dense}/kernel"] = state[f"{held}.weight"].T
            found[f"{dense}/bias"] = state[f"{held}.bias"]
    return found
