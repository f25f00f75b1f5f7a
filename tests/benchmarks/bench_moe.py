"""Experts, forward and backward: ours against DeepSpeed's native layer and a dense layer.

2,048 rows of 128 channels, hidden width 512, 2 experts a row, one thread and one process. Times are
the process's CPU time, which a busy machine disturbs least. The dense layer is a two-layer net of
equal active FLOPs.

The gates are as they start ("balanced": rows spread evenly) or have the same random weights, larger
for some experts than for others ("skewed": some experts are busier, as after training).
Ours drops no row. The native layer is measured when it drops none either, for which it pads all
experts to the busiest, and as it is by default, when it drops what is over its capacity.

    python -m tests.benchmarks.bench_moe [--repeats 15]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtrain.layers.moe import MoE

ROWS, DIM, HIDDEN, ACTIVE = 2048, 128, 512, 2


class NativeExpert(nn.Module):
    """The same net as one of ours: two maps without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in = nn.Linear(DIM, HIDDEN, bias=False)
        self.w_out = nn.Linear(HIDDEN, DIM, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.w_out(self.w_in(x_ND).relu())


def ours(gate_ED: Tensor) -> Callable[[Tensor], Tensor]:
    moe = MoE(
        DIM,
        name="bench",
        num_experts=len(gate_ED),
        k=ACTIVE,
        hidden_dim=HIDDEN,
        loss_weight=0.01,
    )
    moe.gate.clean.weight.data.copy_(gate_ED)
    mask_BL1 = torch.ones(1, ROWS, 1)

    def forward(x_ND: Tensor) -> Tensor:
        routed = moe(x_ND[None], mask_BL1)
        return routed.values_BLD.square().mean() + routed.balance.loss

    return forward


def native(gate_ED: Tensor, *, drop_tokens: bool) -> Callable[[Tensor], Tensor]:
    """DeepSpeed's layer with our norm behind it."""
    from deepspeed.moe.layer import MoE as NativeMoE

    moe = NativeMoE(
        DIM, NativeExpert(), num_experts=len(gate_ED), k=ACTIVE, drop_tokens=drop_tokens
    )
    moe.set_deepspeed_parallelism()
    if bool(gate_ED.any()):  # zero weights: all rows would tie; its own small weights do not
        moe.deepspeed_moe.gate.wg.weight.data.copy_(gate_ED)
    norm = nn.LayerNorm(DIM)

    def forward(x_ND: Tensor) -> Tensor:
        out, loss, _ = moe(x_ND)
        return norm(x_ND + out).square().mean() + 0.01 * loss

    return forward


def dense() -> Callable[[Tensor], Tensor]:
    net = nn.Sequential(
        nn.Linear(DIM, ACTIVE * HIDDEN, bias=False),
        nn.ReLU(),
        nn.Linear(ACTIVE * HIDDEN, DIM, bias=False),
    )
    norm = nn.LayerNorm(DIM)
    return lambda x_ND: norm(x_ND + net(x_ND)).square().mean()


def medians_ms(
    layers: Mapping[str, Callable[[Tensor], Tensor]], *, repeats: int
) -> dict[str, float]:
    """Median of each; the layers take turns."""
    x_ND = torch.randn(ROWS, DIM, requires_grad=True)
    taken: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(repeats + 2):
        for name, forward in layers.items():
            start = time.process_time()
            forward(x_ND).backward()
            if turn >= 2:  # the first two warm up
                taken[name].append((time.process_time() - start) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def report(name: str, *, ours_ms: float, peer_ms: float) -> None:
    line = {"name": name, "ours": round(ours_ms, 2), "peer": round(peer_ms, 2)}
    line |= {"ratio": round(ours_ms / peer_ms, 3), "unit": "ms", "better": "lower"}
    print(json.dumps(line), flush=True)


def compare(num_experts: int, *, routing: str, repeats: int) -> None:
    gate_ED = torch.zeros(num_experts, DIM)
    if routing == "skewed":
        gate_ED.normal_(std=0.1)
        gate_ED *= torch.linspace(0.2, 2.0, num_experts)[:, None]
    layers = {
        "ours": ours(gate_ED),
        "native": native(gate_ED, drop_tokens=False),
        "native_dropping": native(gate_ED, drop_tokens=True),
        "dense": dense(),
    }
    found = medians_ms(layers, repeats=repeats)
    for peer in ("native", "native_dropping", "dense"):
        name = f"moe_{num_experts}_experts_{routing}_against_{peer}"
        report(name, ours_ms=found["ours"], peer_ms=found[peer])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    repeats: int = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    import deepspeed

    with tempfile.TemporaryDirectory() as folder:
        deepspeed.init_distributed(
            "gloo",
            init_method=f"file://{folder}/meet",
            rank=0,
            world_size=1,
            auto_mpi_discovery=False,
            verbose=False,
        )
        for num_experts in (8, 32):
            for routing in ("balanced", "skewed"):
                compare(num_experts, routing=routing, repeats=repeats)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
