import pytest
import torch

from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.flops import count, counting, forward_flops
from mmtrain.cut.slicing import cut
from mmtrain.layers.conv import DepthwiseConv, Place
from mmtrain.models.resnet import Config
from tests.mmtrain.models.tiny_polyvit import example, tiny_polyvit
from tests.mmtrain.models.tiny_resnet import (
    closed_form_flops,
    closed_form_parameters,
    pictures,
    random_masks,
    tiny_resnet,
)

torch.set_num_threads(1)


def inputs(task: str = "digit", *, batch: int = 4, side: int = 8) -> TaskInputs:
    return TaskInputs(task, **pictures(batch=batch, side=side))


@pytest.mark.parametrize("shortcuts", ["residual", "none"])
@pytest.mark.parametrize("seed", range(5))
def test_a_cut_network_costs_what_its_counts_of_units_say(seed, shortcuts):
    model = tiny_resnet(depth=14, shortcuts=shortcuts)
    kept, _, _ = random_masks(model, seed=seed, share=0.5)
    small = cut(model, kept)
    body = small.config.body
    assert isinstance(body, Config)
    cost = count(small, [inputs(side=9)])
    assert cost.parameters == closed_form_parameters(body, scores=(10, 2))
    assert cost.flops == closed_form_flops(body, side=9, batch=4, scores=10)


def test_bytes_are_those_of_weights_and_statistics():
    model = tiny_resnet()
    channels, norms = 3 * 6 + 3 * 8 + 3 * 10, 9  # with a mean, a variance and a counter
    expected = closed_form_parameters(Config(channels=1, widths=(6, 8, 10)), scores=(10, 2)) * 4
    assert count(model, []).bytes == expected + 2 * channels * 4 + norms * 8


def test_operations_of_several_inputs_add_up():
    model = tiny_resnet()
    digit, parity = inputs(), inputs("parity", batch=2)
    both = count(model, [digit, parity]).flops
    assert both == forward_flops(model, digit) + forward_flops(model, parity)


def test_masks_alone_save_nothing_and_count_as_nothing():
    model = tiny_resnet()
    before = count(model, [inputs()])
    model.add_module("masks", torch.nn.Linear(5, 5))
    assert count(model, [inputs()]) == before


def test_the_model_is_left_in_its_mode_with_its_statistics():
    model = tiny_resnet().train()
    before = model.body.stem.norm.running_mean.clone()
    count(model, [inputs()])
    assert model.training
    assert torch.equal(model.body.stem.norm.running_mean, before)


def test_a_vision_transformer_costs_its_closed_form():
    """6 patches of 16 numbers and a class token, D 16, 4 blocks of 24 hidden units, 10 scores."""
    batch, length, dim, hidden = 2, 7, 16, 24
    block = 4 * length * dim * dim + 2 * length * length * dim + 2 * length * dim * hidden
    expected = 2 * batch * (6 * 16 * dim + 4 * block + dim * 10)
    assert forward_flops(tiny_polyvit(), TaskInputs("digit", **example("digit"))) == expected


def test_taps_of_a_depthwise_convolution_count_where_they_reach():
    conv = DepthwiseConv(4, kernel=3, dilation=1, padding="same")
    x_BLD = torch.randn(2, 5, 4)
    place = Place(torch.ones(2, 5, 1), torch.zeros(1, 5, 4), torch.zeros(()))
    with torch.no_grad(), counting() as counter:
        conv(x_BLD, place)
    assert counter.get_total_flops() == 2 * 2 * 4 * (4 + 5 + 4)


def test_operations_do_not_depend_on_where_a_modality_s_own_blocks_stand():
    picture = [TaskInputs("digit", **example("digit"))]
    costs = [
        count(tiny_polyvit(num_adapter_blocks=before, num_adapter_blocks_after=after), picture)
        for before, after in ((0, 0), (2, 0), (0, 2), (1, 1))
    ]
    assert len({cost.flops for cost in costs}) == 1
    assert costs[0].parameters < costs[1].parameters == costs[2].parameters == costs[3].parameters
