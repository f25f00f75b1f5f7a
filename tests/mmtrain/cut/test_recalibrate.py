import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.recalibrate import RecalibrationError, batch_norms, recalibrate
from mmtrain.models.model import MultiTaskModel
from tests.mmtrain.models.tiny_polyvit import tiny_polyvit
from tests.mmtrain.models.tiny_resnet import pictures, tiny_resnet

torch.set_num_threads(1)

BATCHES = [TaskInputs("digit", **pictures(batch=6, seed=seed)) for seed in range(4)]


def statistics(model: MultiTaskModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def test_statistics_are_the_mean_over_batches_and_those_before_play_no_part():
    model = tiny_resnet()
    recalibrate(model, BATCHES[:3])
    outputs = []
    for batch in BATCHES[:3]:
        encoded = model.stems["image_pixels"](batch.inputs, batch.input_lengths)
        x_BCYX = encoded.values_BSD.unflatten(1, (8, 8)).permute(0, 3, 1, 2)
        outputs.append(model.body.stem.conv(x_BCYX))
    means = torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0)
    variances = torch.stack([out.var((0, 2, 3)) for out in outputs]).mean(0)
    norm = model.body.stem.norm
    assert_close(norm.running_mean, means)
    assert_close(norm.running_var, variances)
    assert norm.num_batches_tracked == 3


def test_the_same_batches_give_the_same_bits_however_often():
    model = tiny_resnet()
    recalibrate(model, BATCHES)
    once = statistics(model)
    recalibrate(model, BATCHES)
    for name, value in once.items():
        assert torch.equal(statistics(model)[name], value), name


def test_the_order_of_the_batches_makes_no_difference():
    model, other = tiny_resnet(), tiny_resnet()
    recalibrate(model, BATCHES)
    recalibrate(other, BATCHES[::-1])
    for name, value in statistics(model).items():
        assert_close(statistics(other)[name], value, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_mode_momentum_and_weights_are_left_as_they_were(training):
    model = tiny_resnet(norm_momentum=0.2).train(training)
    before = [weight.clone() for weight in model.parameters()]
    recalibrate(model, BATCHES)
    assert all(module.training is training for module in model.modules())
    assert {norm.momentum for norm in batch_norms(model).values()} == {0.2}
    for weight, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, value)
        assert weight.grad is None


def test_without_data_it_says_so_and_changes_nothing():
    model = tiny_resnet()
    before = statistics(model)
    with pytest.raises(RecalibrationError, match="no data to recalibrate 9 batch norms on"):
        recalibrate(model, [])
    assert all(torch.equal(statistics(model)[name], value) for name, value in before.items())


def test_a_model_without_batch_norms_takes_no_data():
    recalibrate(tiny_polyvit(), [])
