import math

import pytest
import torch
from torch import nn, tensor
from torch.nn import functional
from torch.testing import assert_close

from mmtrain.layers.experts import Experts
from mmtrain.losses import (
    LossError,
    check_loss,
    cross_entropy,
    grouped_cross_entropy,
    load_loss,
    sigmoid_cross_entropy,
    squared_error,
    weight_decay_loss,
)
from mmtrain.models import multimodel
from pipelines.errors import UnknownNameError
from pipelines.modalities import Feature
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.labels import LabelsFeature
from pipelines.modalities.mask import MaskFeature
from pipelines.modalities.multilabel import MultiLabelFeature
from pipelines.modalities.numbers import NumbersFeature
from pipelines.modalities.text import TextFeature
from pipelines.task import Task
from tests.pipelines.toy_corpus import toy_task


def slow_cross_entropy(logits, targets, *, smoothing, ignore_padding):
    total, count, num_labels = 0.0, 0, logits.shape[-1]
    for row, label in zip(logits.tolist(), targets.tolist(), strict=True):
        if ignore_padding and label == 0:
            continue
        log_z = math.log(sum(math.exp(value) for value in row))
        for other, value in enumerate(row):
            q = 1 - smoothing if other == label else smoothing / (num_labels - 1)
            total -= q * (value - log_z) - (q * math.log(q) if q > 0 else 0)
        count += 1
    return total, count


def test_cross_entropy_leaves_out_padding():
    logits = tensor([[[0.0, 2.0, 0.0], [1.0, 1.0, 1.0]]])
    loss = cross_entropy(logits, tensor([[1, 0]]))
    assert_close(loss.total, tensor(0.239545))  # ln(1 + 2 exp(-2))
    assert loss.count == 1


def test_class_zero_is_a_class():
    loss = cross_entropy(tensor([[2.0, 0.0], [0.0, 3.0]]), tensor([[0], [1]]))
    assert_close(loss.total, tensor(0.126928 + 0.048587), rtol=0, atol=1e-5)
    assert loss.count == 2


def test_smoothed_cross_entropy_equals_the_slow_sum():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 4, 7), tensor([[3, 6, 0, 0], [1, 2, 5, 0]])
    loss = cross_entropy(logits, targets, label_smoothing=0.1)
    total, count = slow_cross_entropy(
        logits.view(-1, 7), targets.view(-1), smoothing=0.1, ignore_padding=True
    )
    assert_close(loss.total, tensor(total), rtol=1e-5, atol=0)
    assert loss.count == count == 5


def test_perfect_model_scores_zero_with_smoothing():
    q = torch.full((1, 5), 0.2 / 4)
    q[0, 3] = 0.8
    loss = cross_entropy(q.log(), tensor([[3]]), label_smoothing=0.2)
    assert_close(loss.total, tensor(0.0), rtol=0, atol=1e-6)


def test_gradient_at_padding_is_zero_even_where_logits_are_infinite():
    logits = tensor([[[0.5, 1.0], [torch.inf, 1.0]]], requires_grad=True)
    cross_entropy(logits, tensor([[1, 0]])).total.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad[0, 0]).all()
    loss = cross_entropy(logits, tensor([[1, 0]])).total
    assert torch.isfinite(loss)


def test_half_precision_logits_are_summed_in_fp32():
    loss = cross_entropy(torch.zeros(1, 1000, 4, dtype=torch.bfloat16), torch.ones(1, 1000))
    assert_close(loss.total, tensor(1386.2944))


def test_only_padding_gives_nothing_to_divide():
    loss = cross_entropy(torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.int32))
    assert loss.total == 0
    assert loss.count == 0


def test_parts_add_up_to_the_whole():
    torch.manual_seed(1)
    logits, targets = torch.randn(6, 3, 5), torch.randint(0, 5, (6, 3))
    whole = cross_entropy(logits, targets, label_smoothing=0.1)
    parts = [
        cross_entropy(x, y, label_smoothing=0.1)
        for x, y in zip(logits.chunk(3), targets.chunk(3), strict=True)
    ]
    assert_close(sum(part.total for part in parts), whole.total)
    assert sum(part.count for part in parts) == whole.count


def test_target_sums_count_right_tokens_without_padding():
    logits = tensor([[[0.0, 2.0], [2.0, 0.0], [9.0, 0.0]]])
    sums = cross_entropy.measure(logits, tensor([[1, 1, 0]]))
    assert (int(sums.correct), int(sums.count)) == (1, 2)
    assert_close(sums.loss, tensor(0.126928 + 2.126928), rtol=0, atol=1e-5)


def test_every_pixel_of_a_mask_counts_also_of_class_zero():
    torch.manual_seed(2)
    logits, targets = torch.randn(2, 3, 4, 5), torch.randint(0, 5, (2, 3, 4), dtype=torch.uint8)
    loss = cross_entropy(logits, targets)
    expected = functional.cross_entropy(logits.permute(0, 3, 1, 2), targets.long(), reduction="sum")
    assert_close(loss.total, expected)
    assert loss.count == 24


def test_sigmoid_loss_is_torchs_summed_over_classes_and_meant_over_the_batch():
    torch.manual_seed(3)
    logits = torch.randn(4, 6)
    several = tensor([[1, 0, 1, 0, 0, 1], [0] * 6, [1] * 6, [0, 0, 0, 1, 0, 0]])
    loss = sigmoid_cross_entropy(logits, several.to(torch.uint8))
    expected = functional.binary_cross_entropy_with_logits(logits, several.float())
    assert_close(loss.total / loss.count, expected * 6)
    assert loss.count == 4


@pytest.mark.parametrize("shape", [(4, 1), (4,)])
def test_sigmoid_loss_takes_one_class_as_one_of_many(shape):
    torch.manual_seed(4)
    logits, ids = torch.randn(4, 6), tensor([0, 5, 2, 2])
    one_hot = functional.one_hot(ids, 6).float()
    expected = functional.binary_cross_entropy_with_logits(logits, one_hot, reduction="sum")
    assert_close(sigmoid_cross_entropy(logits, ids.view(shape)).total, expected)


def test_smoothed_sigmoid_loss_is_least_zero_and_elsewhere_as_torchs():
    smoothed = torch.full((1, 4), 0.2 / 4)
    smoothed[0, 3] += 0.8
    ids = tensor([[3]])
    assert_close(
        sigmoid_cross_entropy(smoothed.logit(), ids, label_smoothing=0.2).total,
        tensor(0.0), rtol=0, atol=1e-6,
    )  # fmt: skip
    one, other = torch.randn(1, 4), torch.randn(1, 4)
    apart = [
        functional.binary_cross_entropy_with_logits(x, smoothed, reduction="sum")
        for x in (one, other)
    ]
    ours = [sigmoid_cross_entropy(x, ids, label_smoothing=0.2).total for x in (one, other)]
    assert_close(ours[0] - ours[1], apart[0] - apart[1])


def test_grouped_loss_is_the_mean_of_the_parts_losses():
    torch.manual_seed(5)
    logits, targets = torch.randn(3, 7), tensor([[0, 3], [1, 0], [1, 4]])
    loss = grouped_cross_entropy(logits, targets, groups=(2, 5))
    first = functional.cross_entropy(logits[:, :2], targets[:, 0], reduction="sum")
    second = functional.cross_entropy(logits[:, 2:], targets[:, 1], reduction="sum")
    assert_close(loss.total, (first + second) / 2)
    assert loss.count == 3


def test_squared_error_is_summed_over_values_and_meant_over_the_batch():
    torch.manual_seed(6)
    values, targets = torch.randn(5, 4), torch.rand(5, 4)
    loss = squared_error(values, targets)
    assert_close(loss.total / loss.count, functional.mse_loss(values, targets) * 4)


@pytest.mark.parametrize(
    ("name", "logits", "targets", "groups", "correct"),
    [
        ("grouped_cross_entropy", [[2.0, 1, 0, 5], [0, 1, 2, 3]], [[0, 1], [1, 0]], (2, 2), 1.0),
        ("sigmoid_cross_entropy", [[1.0, -1, 1, -1]], [[1, 1, 0, 0]], (), 0.5),
        ("sigmoid_cross_entropy", [[1.0, 2, 0, 0]], [[1]], (), 1.0),
        ("cross_entropy", [[[[1.0, 0], [0, 1]]]], [[[0, 0]]], (), 1.0),
    ],
)
def test_hits_of_each_kind_of_target(name, logits, targets, groups, correct):
    sums = load_loss(name).measure(tensor(logits), tensor(targets), groups=groups)
    assert float(sums.correct) == correct


def test_values_have_no_hits():
    assert squared_error.measure(torch.zeros(1, 2), torch.zeros(1, 2)).correct.isnan()


@pytest.mark.parametrize(
    ("name", "logits", "targets", "is_sequence"),
    [
        ("cross_entropy", torch.randn(2, 3, 5), tensor([[4, 1, 0], [1, 0, 0]]), True),
        ("cross_entropy", torch.randn(2, 5), tensor([[0], [4]]), False),
        ("cross_entropy", torch.randn(2, 2, 2, 5), torch.zeros(2, 2, 2, dtype=torch.uint8), False),
        ("sigmoid_cross_entropy", torch.randn(2, 5), torch.zeros(2, 5), False),
        ("grouped_cross_entropy", torch.randn(3, 5), torch.zeros(3, 2), False),
        ("squared_error", torch.randn(3, 4), torch.zeros(3, 4), False),
    ],
)
def test_target_count_is_what_the_loss_counts(name, logits, targets, is_sequence):
    loss = load_loss(name)
    count = int(loss(logits, targets, groups=(2, 3) if name.startswith("grouped") else ()).count)
    assert loss.count_targets(targets, is_sequence=is_sequence) == count
    assert loss.count_targets(targets.numpy(), is_sequence=is_sequence) == count


LABEL = LabelFeature(classes=("a", "b"))
SEVERAL = MultiLabelFeature(classes=("a", "b"))
TARGETS = (
    LABEL,
    SEVERAL,
    LabelsFeature(parts={"verb": ("a", "b"), "noun": ("c",)}),
    NumbersFeature(names=("x",)),
    MaskFeature(height=2, width=2, classes=("a", "b")),
    TextFeature(),
)


def task_of(targets: Feature, **fields) -> Task:
    return toy_task().model_copy(update={"targets": targets, **fields})


@pytest.mark.parametrize("feature", TARGETS, ids=lambda feature: feature.modality)
def test_a_targets_own_loss_fits_it(feature: Feature):
    check_loss(task_of(feature))


def test_one_class_may_be_learned_with_the_sigmoid_loss():
    check_loss(task_of(LABEL, loss="sigmoid_cross_entropy"))


@pytest.mark.parametrize("name", ["cross_entropy", "grouped_cross_entropy", "squared_error"])
def test_several_classes_at_once_take_the_sigmoid_loss_alone(name: str):
    with pytest.raises(LossError, match=r"tags.*set loss to 'sigmoid_cross_entropy'"):
        check_loss(task_of(SEVERAL, name="tags", loss=name))


def test_an_unknown_loss_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="sigmoid_cross_entropy"):
        check_loss(task_of(SEVERAL, loss="sigmoid_crossentropy"))


def test_label_smoothing_of_values_is_refused():
    with pytest.raises(LossError, match="'squared_error' has no label_smoothing; set label_smoo"):
        check_loss(task_of(NumbersFeature(names=("x",)), label_smoothing=0.1))


def test_weight_decay_is_the_mean_square_of_matrices_alone():
    parameters = [nn.Parameter(tensor([[1.0, 3.0]])), nn.Parameter(tensor([7.0]))]
    assert_close(weight_decay_loss(parameters, weight=3.0), tensor(7.5))  # 3 * 5 / 2


def test_weight_decay_takes_each_expert_as_a_matrix_of_its_own():
    torch.manual_seed(0)
    model = nn.ModuleDict({"experts": Experts(3, 4, num_experts=5), "head": nn.Linear(3, 2)})
    twin = 0.0
    for matrices in (model["experts"].w_in, model["experts"].w_out, [model["head"].weight]):
        for matrix in matrices:
            twin += sum(value**2 for value in matrix.flatten().tolist()) / matrix.numel() / 2
    loss = weight_decay_loss(model.parameters(), weight=3.0)
    assert loss.item() == pytest.approx(3.0 * twin)
    expert_grad = torch.autograd.grad(loss, model["experts"].w_in)[0]
    assert_close(expert_grad, 3.0 * model["experts"].w_in.detach() / 12)  # of 3 x 4 weights


def test_weight_decay_of_a_cut_model_counts_the_experts_that_are_left():
    units = {"encoder.moe.experts": 3, "encoder.moe.experts.hidden": 5}
    body = multimodel.Config(
        model_dim=8, num_heads=2, num_experts=4, expert_dim=6, experts="encoder", units=units
    )
    experts = multimodel.Encoder(body).moe.experts
    twin = sum(
        matrix.square().mean() / 2 for stack in (experts.w_in, experts.w_out) for matrix in stack
    )
    assert experts.w_in.shape == (3, 8, 5)
    assert_close(weight_decay_loss(experts.parameters(), weight=1.0), twin)
