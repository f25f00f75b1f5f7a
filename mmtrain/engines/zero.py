"""DeepSpeed's ZeRO optimizers from within: all that we touch of their internals stands here.

Written against DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py and stage3.py. Its public ways
(`safe_get_full_fp32_param` and the like) gather one parameter on all ranks, and know nothing of
groups that take no part in a step; checkpoints read and write each rank's own memory in place.
When a version of DeepSpeed moves one of these names, tests/mmtrain/engines/test_deepspeed.py fails
with an AttributeError: look for what took its place, each function says what it needs.
"""

from collections.abc import Iterable
from math import inf
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtrain.engines.optim import OwnerOptimizer
from mmtrain.engines.pieces import Piece


class ZeroInternals:
    """The ZeRO optimizer of stage 1, 2 or 3 that DeepSpeed put around ours.

    Args:
        zero: `engine.optimizer` of DeepSpeed.
        stage: of ZeRO.
        optimizer: ours.
        offloads: whether its states are on the CPU, where DeepSpeed measures the norm otherwise.
    """

    def __init__(self, zero: Any, *, stage: int, optimizer: OwnerOptimizer, offloads: bool) -> None:
        self._zero, self._stage, self._optimizer = zero, stage, optimizer
        self._offloads = offloads
        if not offloads:
            self._measure_norm_once()

    def _measure_norm_once(self) -> None:
        """Has the global norm measured over all groups in one go and with one all-reduce.

        DeepSpeed measures it tensor by tensor and reduces it group by group: with a group for each
        owner that was half of what ZeRO costs on a small model.
        """

        def measure() -> Tensor:
            groups = self._zero.averaged_gradients  # in the order of first use: resumed runs differ
            return norm_over_ranks(held for number in sorted(groups) for held in groups[number])

        self._zero.scaled_global_norm = measure  # ZeRO 1 and 2
        self._zero._get_norm_groups = lambda: [measure()]  # ZeRO 3

    def stepped(self) -> dict[str, list[Tensor]]:
        """The flat partitions that the optimizer steps on this rank, by owner."""
        found: dict[str, list[Tensor]] = {}
        for group in self._optimizer.param_groups:
            found.setdefault(group["owner"], [])
        if self._stage == 3:
            # ZeRO 3 cuts groups into sub-groups and puts one at a time into a group to step it.
            for sub_group, tensor in enumerate(self._zero.fp32_partitioned_groups_flat):
                number = self._zero.sub_group_to_group_id[sub_group]
                found[self._optimizer.param_groups[number]["owner"]].append(tensor)
        else:
            for group in self._optimizer.param_groups:
                found[group["owner"]].extend(group["params"])
        return {owner: tensors for owner, tensors in found.items() if tensors}

    def link_states(self) -> None:
        """Lets parameters find their part of states that are there by now (ZeRO 1 and 2).

        DeepSpeed does so once, at the first step of the first group, when the others have none:
        "exp_avg not found" for all of them afterwards.
        """
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()

    def drop_stale_gradients(self) -> None:
        """Zeroes the buffers that DeepSpeed keeps: one that the next backward does not reach would
        count again.
        """
        if self._stage == 3:
            self._zero.grad_partitions_flat_buffer.zero_()
        if self._offloads:
            for tensor in (part for tensors in self.stepped().values() for part in tensors):
                if tensor.grad is not None:
                    tensor.grad.zero_()

    def gradient_norm(self) -> float:
        """Of the last step; infinite where DeepSpeed left it out for a NaN or an infinity."""
        return inf if self._zero.overflow else float(self._zero._global_grad_norm)

    def piece(self, parameter: nn.Parameter, *, start: int) -> Piece | None:
        """What this rank holds of a parameter.

        Args:
            parameter: of the model; trained, or of any kind under ZeRO 3.
            start: first element of what the ranks that share its partitions hold together.
        """
        return self._piece_3(parameter) if self._stage == 3 else self._piece_1_2(parameter, start)

    def _piece_1_2(self, parameter: nn.Parameter, start: int) -> Piece | None:
        """What of the parameter lies in this rank's flat fp32 partition."""
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]  # set by DeepSpeed
        if mapping is None:
            return None
        states = self._optimizer.rule.states
        tensors = {key: mapping.get_optim_state_fragment(key) for key in states}
        first = mapping.lp_fragment_address.start + start
        return Piece(first, {"weight": mapping.get_hp_fragment()} | tensors)

    def _piece_3(self, parameter: nn.Parameter) -> Piece | None:
        """Equal parts for all ranks, the last of them padded."""
        held = parameter.ds_tensor  # type: ignore[attr-defined]  # set by DeepSpeed
        start = dist.get_rank() * held.ds_numel
        size = min(held.ds_numel, parameter.ds_numel - start)  # type: ignore[attr-defined]
        if size <= 0:
            return None
        if not parameter.requires_grad:
            return Piece(start, {"weight": held.data.view(-1)[:size]})
        keys = (("weight", None), *((key, key) for key in self._optimizer.rule.states))
        views = {
            key: self._zero._get_fp32_opt_state_partition(
                parameter, release_swap_buffers=False, optim_state_key=state
            )[0]
            for key, state in keys
        }
        return Piece(start, {key: view[:size] for key, view in views.items()})

    def update_working_weights(self) -> None:
        """After the fp32 weights were written: the weights that forward uses follow.

        Of ZeRO 3 it is the end of DeepSpeed's own step.
        """
        if self._stage < 3:
            self._zero.update_lp_params()
            return
        self._zero._partition_all_parameters()
        for sub_group in range(len(self._zero.fp32_partitioned_groups_flat)):
            self._zero._reassign_or_swap_out_partitioned_parameters(sub_group)
        self._zero._post_step(set())


@torch.no_grad()
def norm_over_ranks(gradients: Iterable[Tensor]) -> Tensor:
    """Global norm of gradients of which each rank holds a part and no two ranks the same one."""
    square = nn.utils.get_total_norm([gradient.float() for gradient in gradients]).square()
    if dist.get_world_size() > 1:
        dist.all_reduce(square)
    return square.sqrt()
