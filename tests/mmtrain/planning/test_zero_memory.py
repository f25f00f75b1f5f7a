"""What a rank holds and sends by ZeRO stage, in closed form."""

import pytest

from mmtrain.engines import EngineConfig
from mmtrain.planning.footprint import Footprint
from mmtrain.planning.traffic import Traffic, step_traffic
from mmtrain.planning.zero_memory import Parameter, ZeroRank


def dense(numel: int, name: str = "w", *, owner: str = "body/blocks") -> Parameter:
    return Parameter(name, owner, numel, is_expert=False, is_trained=True, decays=False)


def footprint(*trained: str, activations: int = 0) -> Footprint:
    return Footprint(("task",), activations, 0, frozenset(trained), exchanged=0)


FOUND = footprint("w")


@pytest.mark.parametrize(
    ("stage", "weights", "masters", "moments"),
    [(0, 4, 0, 8), (1, 4, 1, 2), (2, 4, 1, 2)],
)
def test_states_are_split_over_four_ranks_by_stage(stage, weights, masters, moments):
    numel = 1000
    found = ZeroRank([dense(numel)], EngineConfig(zero_stage=stage), 4, use_gpu=True).memory(
        [FOUND]
    )
    assert (found.weights, found.masters, found.moments) == (
        weights * numel, masters * numel, moments * numel,
    )  # fmt: skip


def test_bf16_has_half_the_weights_and_fp32_masters_in_parts():
    engine = EngineConfig(zero_stage=1, precision="bf16")
    found = ZeroRank([dense(1000)], engine, 2, num_moments=1, use_gpu=True).memory([FOUND])
    assert (found.weights, found.masters, found.moments) == (2000, 2000, 2000)


def test_zero_3_keeps_parts_and_what_is_gathered():
    big = 4_000_000
    parameters = [dense(big), dense(40_000, "small", owner="body/norm")]
    rank = ZeroRank(parameters, EngineConfig(zero_stage=3), 4, use_gpu=True)
    found = rank.memory([footprint("w", "small", activations=10**9)])
    share = (big + 40_000) // 4
    assert found.weights == 4 * (share + big + 40_000)
    assert (found.masters, found.moments) == (4 * share, 8 * share)


def test_partitions_of_all_ranks_hold_every_element():
    parameters = [dense(numel, f"w{numel}") for numel in (7, 130, 1000)]
    for world_size in (1, 2, 3, 8):
        found = ZeroRank(parameters, EngineConfig(zero_stage=1), world_size).sizes
        assert found.partition * world_size >= 1137
        assert found.partition * world_size < 1137 + 2 * world_size + 2
    assert ZeroRank(parameters, EngineConfig(), 1).sizes.straddling == 1137


def test_experts_are_divided_over_ep_size_and_their_states_over_the_rest():
    expert = Parameter("e", "experts/moe", 8000, is_expert=True, is_trained=True, decays=False)
    found = ZeroRank([dense(1000), expert], EngineConfig(zero_stage=2, ep_size=4), 8).sizes
    assert found.held == 1000 + 2000
    assert found.partition == 1000 // 8 + 1 + 2000 // 2  # an even part of the dense ones


def test_offloading_moves_the_states_to_the_host():
    here, there = (
        ZeroRank(
            [dense(1000)], EngineConfig(zero_stage=1, offload_optimizer=offloads), 2, use_gpu=True
        ).memory([FOUND])
        for offloads in (False, True)
    )
    assert (there.masters, there.moments) == (0, 0)
    assert there.host == here.masters + here.moments + 4 * 500
    assert there.weights == here.weights


def test_traffic_by_stage_in_closed_form():
    sent = [
        step_traffic(ZeroRank([dense(1_000_000)], EngineConfig(zero_stage=stage), 4), FOUND)
        for stage in (0, 1, 2, 3)
    ]
    million = 4_000_000
    assert sent == [
        Traffic(all_reduce=million),
        Traffic(all_reduce=million, all_gather=million),
        Traffic(all_reduce=million, all_gather=million),
        Traffic(reduce_scatter=million, all_gather=million),
    ]
    assert sent[1].total == 2 * million


def test_one_rank_sends_nothing():
    assert step_traffic(ZeroRank([dense(10)], EngineConfig(), 1), FOUND).total == 0
