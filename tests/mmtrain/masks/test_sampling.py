import itertools
from collections import Counter

import pytest

from mmtrain.masks.config import PruningConfig
from mmtrain.masks.sampling import draw_unions

NAMES = ("a", "b", "c", "d")
UNIONS = [union for size in (1, 2, 3, 4) for union in itertools.combinations(NAMES, size)]
STEPS = 4000


def config_of(**settings: object) -> PruningConfig:
    return PruningConfig.model_validate({"subtasks": {name: (name,) for name in NAMES}, **settings})


def frequencies(config: PruningConfig, *, within: list[str] | None = None) -> Counter:
    """Share of steps in which each union is drawn, of one pass a step."""
    drawn = (draw_unions(config, seed=0, step=step, within=within) for step in range(STEPS))
    counts = Counter(draw.subtasks for (draw,) in drawn)
    return Counter({union: count / STEPS for union, count in counts.items()})


def unions_at(config: PruningConfig, *, place: int) -> set[tuple[str, ...]]:
    """Unions that are drawn as one pass of a step, in 500 steps."""
    draws = (draw_unions(config, seed=0, step=step) for step in range(500))
    return {passes[place].subtasks for passes in draws}


def inclusion(shares: Counter) -> dict[str, float]:
    return {name: sum(s for union, s in shares.items() if name in union) for name in NAMES}


@pytest.mark.parametrize(("law", "share"), [
    ("stratified", 5 / 8), ("uniform", 8 / 15), ("basis_only", 1 / 4),
])  # fmt: skip
def test_each_subtask_is_in_as_many_unions_as_the_law_says(law, share):
    included = inclusion(frequencies(config_of(law=law, num_samples=1)))
    for name in NAMES:
        assert included[name] == pytest.approx(share, abs=0.03)  # 3.9 standard deviations


def test_the_stratified_law_draws_all_sizes_alike():
    shares = frequencies(config_of(num_samples=1))
    for size in (1, 2, 3, 4):
        drawn = sum(share for union, share in shares.items() if len(union) == size)
        assert drawn == pytest.approx(1 / 4, abs=0.03)


def test_the_uniform_law_draws_all_unions_alike():
    shares = frequencies(config_of(law="uniform", num_samples=1))
    assert set(shares) == set(UNIONS)
    assert all(share == pytest.approx(1 / 15, abs=0.016) for share in shares.values())


def test_two_passes_are_all_subtasks_and_a_drawn_union():
    config = config_of()
    assert unions_at(config, place=0) == {NAMES}
    assert unions_at(config, place=1) == set(UNIONS)
    assert all(draw.share == 0.5 for draw in draw_unions(config, seed=0, step=0))


def test_the_third_pass_is_a_basis_subtask_and_more_are_drawn():
    config = config_of(num_samples=4)
    assert unions_at(config, place=0) == {NAMES}
    assert unions_at(config, place=1) == unions_at(config, place=2) == set(UNIONS)
    assert unions_at(config, place=3) == {("a",), ("b",), ("c",), ("d",)}


def test_a_step_draws_the_same_whatever_was_drawn_before():
    config = config_of(num_samples=3)
    straight = [draw_unions(config, seed=5, step=step) for step in range(20)]
    resumed = [draw_unions(config, seed=5, step=step) for step in range(12, 20)]
    assert resumed == straight[12:]
    assert straight != [draw_unions(config, seed=6, step=step) for step in range(20)]


def test_only_unions_with_the_steps_task_are_drawn():
    for law in ("stratified", "uniform"):
        shares = frequencies(config_of(law=law, num_samples=1), within=["b", "c"])
        assert set(shares) == {union for union in UNIONS if {"b", "c"} & set(union)}
    basis = frequencies(config_of(law="basis_only", num_samples=1), within=["b"])
    assert set(basis) == {("b",)}


def test_sizes_stay_alike_among_unions_with_the_steps_task():
    shares = frequencies(config_of(num_samples=1), within=["b"])
    for size in (1, 2, 3, 4):
        drawn = sum(share for union, share in shares.items() if len(union) == size)
        assert drawn == pytest.approx(1 / 4, abs=0.03)


def test_a_task_in_no_subtask_draws_nothing():
    assert draw_unions(config_of(), seed=0, step=0, within=[]) == ()


def test_the_exact_law_takes_every_union_once():
    draws = draw_unions(config_of(law="exact"), seed=0, step=0)
    assert [draw.subtasks for draw in draws] == UNIONS
    assert all(draw.share == 1 / 15 for draw in draws)
    some = draw_unions(config_of(law="exact"), seed=0, step=0, within=["a"])
    assert [draw.subtasks for draw in some] == [union for union in UNIONS if "a" in union]
    assert sum(draw.share for draw in some) == pytest.approx(1)


def toy_term(union: tuple[str, ...]) -> float:
    """Some loss of a union; larger unions have far larger ones."""
    return sum(2.0 ** NAMES.index(name) for name in union) * len(union) ** 2


@pytest.mark.parametrize("within", [None, ["a", "c"]], ids=str)
@pytest.mark.parametrize(("law", "num_samples", "weighting"), [
    ("uniform", 1, "equal"), ("stratified", 1, "importance"),
    ("stratified", 2, "importance"), ("uniform", 3, "importance"),
])  # fmt: skip
def test_drawn_terms_are_the_exact_mean_in_the_long_run(law, num_samples, weighting, within):
    exact = draw_unions(config_of(law="exact"), seed=0, step=0, within=within)
    wanted = sum(draw.share * toy_term(draw.subtasks) for draw in exact)
    config = config_of(law=law, num_samples=num_samples, weighting=weighting)
    sums = [
        sum(
            draw.share * toy_term(draw.subtasks)
            for draw in draw_unions(config, seed=1, step=step, within=within)
        )
        for step in range(STEPS)
    ]
    assert sum(sums) / STEPS == pytest.approx(wanted, rel=0.05)


def test_equal_weights_of_the_stratified_law_are_another_mean():
    config = config_of(num_samples=1)
    drawn = sum(
        toy_term(draw_unions(config, seed=1, step=step)[0].subtasks) for step in range(STEPS)
    )
    exact = draw_unions(config_of(law="exact"), seed=0, step=0)
    wanted = sum(draw.share * toy_term(draw.subtasks) for draw in exact)
    assert abs(drawn / STEPS / wanted - 1) > 0.15


def test_one_subtask_is_drawn_at_every_place():
    config = PruningConfig(subtasks={"only": ("digit",)}, num_samples=3, weighting="importance")
    draws = draw_unions(config, seed=0, step=9)
    assert [draw.subtasks for draw in draws] == [("only",)] * 3
    assert sum(draw.share for draw in draws) == pytest.approx(1)
