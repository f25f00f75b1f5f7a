"""Experts divided over two processes compute what one process with all of them computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing import assert_close

from mmtrain.layers.experts import expert_share
from mmtrain.layers.moe import MoE
from mmtrain.layers.units import gated
from mmtrain.losses import weight_decay_loss

RANKS, EXPERTS, DIM = 2, 4, 6


def build_moe() -> MoE:
    torch.manual_seed(0)
    moe = MoE(DIM, name="toy", num_experts=EXPERTS, k=2, hidden_dim=5, loss_weight=0.0)
    torch.nn.init.normal_(moe.gate.clean.weight)
    return moe.eval()


def rows_of(rank: int) -> torch.Tensor:
    """Unequal shares, so that splits are uneven."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(1, 3 + 8 * rank, DIM, generator=generator)


def masked_pass(moe: MoE, x_BLD: torch.Tensor) -> dict[str, torch.Tensor]:
    """Values with experts 1 and 2 and some hidden units off, and the gradients of both masks."""
    mask_E = torch.tensor([1.0, 0.0, 0.0, 1.0], requires_grad=True)
    mask_F = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], requires_grad=True)
    with gated(moe, {"expert_gate": mask_E, "experts.hidden_gate": mask_F}):
        values = moe(x_BLD, torch.ones(*x_BLD.shape[:2], 1)).values_BLD
    loss = values.square().cumsum(-1).sum()
    grad_E, grad_F = torch.autograd.grad(loss, (mask_E, mask_F))
    return {"masked": values.detach(), "experts": grad_E, "hidden": grad_F}


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    moe = build_moe()
    moe.shard_experts(dist.group.WORLD)
    x_BLD = rows_of(rank).requires_grad_()
    values = moe(x_BLD, torch.ones(*x_BLD.shape[:2], 1)).values_BLD
    values.square().sum().backward()
    moe(x_BLD, torch.zeros(*x_BLD.shape[:2], 1) if rank == 0 else torch.ones(*x_BLD.shape[:2], 1))
    share = weight_decay_loss(moe.parameters(), weight=3.0) / RANKS
    found = {
        **masked_pass(moe, x_BLD.detach()),
        "values": values.detach(),
        "x": x_BLD.grad,
        "w_in": moe.experts.w_in.grad,
        "w_out": moe.experts.w_out.grad,
        "decay": share.detach(),
        "decayed": torch.autograd.grad(share, moe.experts.w_in)[0],
        "first": expert_share(moe.experts.w_in).first,
        "held": moe.experts.w_in.shape[0],
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of the processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def test_decay_in_the_loss_does_not_depend_on_where_experts_are(ranks):
    moe = build_moe()
    whole = weight_decay_loss(moe.parameters(), weight=3.0)
    assert_close(sum(found["decay"] for found in ranks), whole.detach())
    grad_EDF = torch.autograd.grad(whole, moe.experts.w_in)[0]  # no other rank adds to a part's
    assert_close(torch.cat([found["decayed"] for found in ranks]), grad_EDF)


def test_sharded_experts_give_the_same_outputs_and_gradients(ranks):
    moe, hidden = build_moe(), torch.zeros(5)
    masked = [masked_pass(build_moe(), rows_of(rank)) for rank in range(RANKS)]
    for rank, found in enumerate(ranks):
        x_BLD = rows_of(rank).requires_grad_()
        values = moe(x_BLD, torch.ones(*x_BLD.shape[:2], 1)).values_BLD
        values.square().sum().backward()  # experts' gradients of both ranks add up
        assert_close(found["values"], values.detach(), atol=1e-5, rtol=1e-5)
        assert_close(found["x"], x_BLD.grad, atol=1e-5, rtol=1e-5)
        assert (found["first"], found["held"]) == (2 * rank, 2)
        assert_close(found["masked"], masked[rank]["masked"], atol=1e-5, rtol=1e-5)
        assert_close(found["experts"], masked[rank]["experts"], atol=1e-4, rtol=1e-5)
        assert (found["experts"] != 0).all()
        hidden += found["hidden"]
    both = sum(parts["hidden"] for parts in masked)  # each rank has that of its own experts
    assert_close(hidden, both, atol=1e-4, rtol=1e-5)
    for name in ("w_in", "w_out"):
        sharded = torch.cat([found[name] for found in ranks])
        assert_close(sharded, getattr(moe.experts, name).grad, atol=1e-5, rtol=1e-5)
