"""Activation checkpointing: blocks keep their inputs alone and are computed again in backward.

A block is an element of a model's outermost `nn.ModuleList`s, which is where repeated layers are.
Random numbers are drawn again as they were, so dropout and gate noise agree.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(model: nn.Module) -> None:
    """Makes the blocks of a model compute their activations again, in place."""
    for block in blocks(model):
        block.forward = _recomputed(block, block.forward)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Elements of the outermost module lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        # ZeRO 3 empties weights between the passes, which the check would take for a difference.
        return checkpoint(forward, *args, use_reentrant=False, determinism_check="none", **kwargs)

    return run
