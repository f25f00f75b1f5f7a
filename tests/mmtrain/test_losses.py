import math

import torch
from torch import nn, tensor
from torch.testing import assert_close

from mmtrain.losses import cross_entropy, target_count, token_sums, weight_decay_loss


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


def test_token_sums_count_right_tokens_without_padding():
    logits = tensor([[[0.0, 2.0], [2.0, 0.0], [9.0, 0.0]]])
    sums = token_sums(logits, tensor([[1, 1, 0]]))
    assert (int(sums.correct), int(sums.count)) == (1, 2)
    assert_close(sums.nll, tensor(0.126928 + 2.126928), rtol=0, atol=1e-5)


def test_target_count_is_what_the_loss_counts():
    assert target_count(tensor([[4, 1, 0], [1, 0, 0]]), is_sequence=True) == 3
    assert target_count(tensor([[0], [4]]), is_sequence=False) == 2


def test_weight_decay_is_the_mean_square_of_matrices_alone():
    parameters = [nn.Parameter(tensor([[1.0, 3.0]])), nn.Parameter(tensor([7.0]))]
    assert_close(weight_decay_loss(parameters, weight=3.0), tensor(7.5))  # 3 * 5 / 2
