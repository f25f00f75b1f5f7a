"""A small random vision transformer of Hugging Face's, as a model, on disk, and as timm has it."""

from typing import Any

import torch
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification


def hugging_face(**changes: Any) -> ViTConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    pictures = {"intermediate_size": 24, "image_size": 16, "patch_size": 8}
    return ViTConfig(**{**sizes, **pictures, **changes})


def random_vit() -> ViTForImageClassification:
    """A random ViT of Hugging Face's, no weight of which is zero or one."""
    torch.manual_seed(0)
    model = ViTForImageClassification(hugging_face(num_labels=3)).eval()
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
