import itertools

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from mmtrain.losses import sigmoid_cross_entropy
from mmtrain.masks.objective import class_weights, subtask_loss, utility_price
from tests.mmtrain.cut.toy_nets import GROUPS, toy_bank

LOGITS = tensor([[2.0, 0.0, -1.0, 0.5], [0.0, 3.0, 1.0, -2.0]])
TARGETS = tensor([0, 2])
SUBSETS = [subset for size in (1, 2, 3, 4) for subset in itertools.combinations(range(4), size)]


def slow_loss(classes, *, beta):
    """The equation as it is written, class by class."""
    alpha = (4 + (beta - 1) * len(classes)) / 4
    total = 0.0
    for logits, target in zip(LOGITS.tolist(), TARGETS.tolist(), strict=True):
        for number, logit in enumerate(logits):
            p = torch.sigmoid(tensor(logit)).item()
            entropy = -tensor(p if number == target else 1 - p).log().item()
            total += (beta if number in classes else 1.0) * entropy / (alpha * 4)
    return total


@pytest.mark.parametrize("beta", [1.0, 5.0, 50.0])
@pytest.mark.parametrize("classes", SUBSETS, ids=str)
def test_the_loss_is_the_equation(classes, beta):
    loss = subtask_loss(LOGITS, TARGETS, classes=classes, beta=beta)
    assert loss.total.item() == pytest.approx(slow_loss(classes, beta=beta), rel=1e-5)
    assert loss.count == 2


@pytest.mark.parametrize("beta", [1.0, 5.0, 50.0])
@pytest.mark.parametrize("classes", SUBSETS, ids=str)
def test_weights_of_classes_sum_to_one(classes, beta):
    assert class_weights(classes, num_classes=4, beta=beta).sum().item() == pytest.approx(1)


@pytest.mark.parametrize(("size", "alpha"), [(1, 1.3), (5, 2.5), (20, 7.0)])
def test_alpha_is_that_of_twenty_classes(size, alpha):
    weights = class_weights(range(size), num_classes=20, beta=7.0)
    assert weights[0].item() == pytest.approx(7 / (alpha * 20))


@pytest.mark.parametrize("beta", [1.0, 7.0, 1e6])
def test_with_all_classes_it_is_the_mean_over_classes(beta):
    loss = subtask_loss(LOGITS, TARGETS, classes=range(4), beta=beta)
    assert_close(loss.total, sigmoid_cross_entropy(LOGITS, TARGETS).total / 4)


def test_with_beta_one_it_is_the_mean_over_classes():
    loss = subtask_loss(LOGITS, TARGETS, classes=(1,), beta=1.0)
    assert_close(loss.total, sigmoid_cross_entropy(LOGITS, TARGETS).total / 4)


def test_equal_entropies_are_the_loss_of_every_subtask():
    for classes in SUBSETS:
        loss = subtask_loss(torch.zeros(3, 4), tensor([0, 1, 2]), classes=classes, beta=5.0)
        assert loss.total.item() == pytest.approx(3 * 0.693147)  # ln 2


def test_a_large_beta_leaves_the_subtask_alone():
    loss = subtask_loss(LOGITS, TARGETS, classes=(0, 1), beta=1e9)
    alone = sigmoid_cross_entropy(LOGITS[:, :2], tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert_close(loss.total, alone.total / 2)


def test_several_classes_at_once_are_taken_as_shares():
    one_hot = torch.nn.functional.one_hot(TARGETS, 4).float()
    by_share = subtask_loss(LOGITS, one_hot, classes=(2,), beta=5.0)
    assert_close(by_share.total, subtask_loss(LOGITS, TARGETS, classes=(2,), beta=5.0).total)


def test_smoothed_labels_of_all_classes_are_those_of_the_plain_loss():
    smoothed = subtask_loss(LOGITS, TARGETS, classes=range(4), beta=5.0, label_smoothing=0.1)
    plain = sigmoid_cross_entropy(LOGITS, TARGETS, label_smoothing=0.1)
    assert_close(smoothed.total, plain.total / 4)


def test_the_price_is_gamma_times_the_mean_utility_of_the_union():
    bank = toy_bank(gamma=0.2)
    price = utility_price(bank, bank.masks(["a", "b"]), step=0)
    largest = bank.utility[:2].abs().max(dim=0).values
    assert price.item() == pytest.approx(0.2 * largest.sum().item() / 11)
    price.backward()
    assert bank.utility.grad.abs().sum().item() == pytest.approx(0.2)  # winners alone pay
    assert bank.utility.grad[2:].abs().sum() == 0


def test_the_price_may_be_that_of_all_members():
    bank = toy_bank(gamma=0.2, l1="basis")
    price = utility_price(bank, bank.masks(["a", "b"]), step=0)
    assert price.item() == pytest.approx(0.2 * bank.utility[:2].abs().sum().item() / 11)
    price.backward()
    assert_close(bank.utility.grad[:2], 0.2 / 11 * bank.utility[:2].detach().sign())


def test_layers_pay_for_their_units():
    bank = toy_bank(gamma=1.0, granularity="layer")
    stream, inner = bank.utility[0].abs().tolist()
    price = utility_price(bank, bank.masks(["a"]), step=0)
    sizes = [group.size for group in GROUPS]
    assert price.item() == pytest.approx((sizes[0] * stream + sizes[1] * inner) / 11)


def test_units_cost_nothing_in_the_warm_up():
    bank = toy_bank(gamma=0.3, warmup_steps=2)
    masks = bank.masks(["a"])
    prices = [utility_price(bank, masks, step=step).item() for step in range(4)]
    assert prices == [0, 0, *[pytest.approx(0.3 * masks.utility.mean().item())] * 2]
