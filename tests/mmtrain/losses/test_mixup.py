import pytest
import torch
from torch.testing import assert_close

from mmtrain.losses import LossSum, cross_entropy
from mmtrain.losses.mixup import MixupError, check_mixup, kept_share, mix_inputs, mixed_loss
from pipelines.modalities.image import ImageFeature
from pipelines.modalities.label import LabelFeature
from pipelines.task import Task
from tests.pipelines.toy_corpus import toy_task

IMAGE = ImageFeature(height=4, width=4, channels=1)
LABEL = LabelFeature(classes=("a", "b", "c"))


def batch() -> dict[str, torch.Tensor]:
    return {
        "inputs": torch.tensor([[[0, 100]], [[200, 40]], [[50, 60]]], dtype=torch.uint8),
        "input_lengths": torch.tensor([1, 2, 1]),
        "targets": torch.tensor([[0], [2], [1]]),
        "target_lengths": torch.tensor([1, 1, 1]),
    }


def test_examples_are_blended_with_the_reversed_batch():
    mix = mix_inputs(batch(), alpha=0.3, key=(0, 7, "digit"))
    kept = mix.kept
    expected = [[[50 - 50 * kept, 60 + 40 * kept]], [[200, 40]], [[50 * kept, 100 - 40 * kept]]]
    assert_close(mix.tensors["inputs"], torch.tensor(expected))
    assert mix.tensors["input_lengths"].tolist() == [1, 2, 1]
    assert mix.tensors["targets"].tolist() == [[0], [2], [1]]


def test_lengths_are_those_of_the_longer_of_both():
    tensors = batch() | {"input_lengths": torch.tensor([1, 2, 3])}
    mix = mix_inputs(tensors, alpha=1.0, key=(0, 7, "digit"))
    assert mix.tensors["input_lengths"].tolist() == [3, 2, 3]


def test_share_follows_seed_step_and_task_and_nothing_else():
    torch.manual_seed(1)
    one = kept_share(0.3, key=(0, 7, "digit"))
    torch.manual_seed(2)
    assert kept_share(0.3, key=(0, 7, "digit")) == one
    others = [(1, 7, "digit"), (0, 8, "digit"), (0, 7, "voice")]
    assert len({one, *(kept_share(0.3, key=key) for key in others)}) == 4


def test_shares_have_the_moments_of_their_distribution():
    shares = torch.tensor([kept_share(0.3, key=(0, step, "a")) for step in range(4000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * 1.6), abs=0.005)  # 1 / (4 (2 alpha + 1))


def test_loss_of_both_labels_is_that_of_the_mixed_label():
    mix = mix_inputs(batch(), alpha=0.3, key=(0, 7, "digit"))
    logits_BV = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    loss = mixed_loss(lambda targets: cross_entropy(logits_BV, targets), mix)
    labels_BV = torch.eye(3)[mix.tensors["targets"].squeeze(1)]
    mixed_BV = mix.kept * labels_BV + (1 - mix.kept) * labels_BV.flip(0)
    assert_close(loss.total, -(mixed_BV * logits_BV.log_softmax(-1)).sum())
    assert int(loss.count) == 3


def test_alpha_zero_leaves_batch_and_loss_alone():
    tensors, calls = batch(), []
    mix = mix_inputs(tensors, alpha=0.0, key=(0, 7, "digit"))
    assert mix.tensors is tensors

    def loss_of(targets: torch.Tensor) -> LossSum:
        calls.append(targets)
        return LossSum(targets.sum(), torch.tensor(3))

    assert mixed_loss(loss_of, mix).total == 3
    assert len(calls) == 1


def test_only_numbers_with_whole_answers_are_blended():
    def task(**fields) -> Task:
        return toy_task(mixup=0.3).model_copy(update=fields)

    check_mixup(toy_task(mixup=0.0))
    check_mixup(task(inputs=IMAGE, targets=LABEL))
    with pytest.raises(MixupError, match=r"text inputs are ids; set mixup=0"):
        check_mixup(task(targets=LABEL))
    with pytest.raises(MixupError, match=r"text targets are decoded token by token"):
        check_mixup(task(inputs=IMAGE))
