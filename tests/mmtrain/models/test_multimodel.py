import pytest
import torch
from torch.testing import assert_close

from tests.mmtrain.models.tiny import EN_FR, TASKS, tiny_model, token_rows

torch.set_num_threads(1)

JOINS = pytest.mark.parametrize("join", ["time", "none"])


def translate(model, *, inputs, lengths, targets, task="en_de"):
    with torch.no_grad():
        return model(task=task, inputs=inputs, input_lengths=lengths, targets=targets).logits


@JOINS
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_target_never_sees_itself_or_what_follows(join, mode):
    model = tiny_model(join=join, gate_noise="none").train(mode == "train")
    inputs, lengths = token_rows(6, 3)
    targets, _ = token_rows(9, 9, seed=1)
    before = translate(model, inputs=inputs, lengths=lengths, targets=targets)
    for t in range(targets.shape[1]):
        changed = targets.clone()
        changed[:, t] = 2 + (changed[:, t] + 5) % 28
        after = translate(model, inputs=inputs, lengths=lengths, targets=changed)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        if t + 1 < targets.shape[1]:
            assert (after[:, t + 1 :] != before[:, t + 1 :]).any(-1).all()


@JOINS
def test_the_first_logits_depend_on_command_and_input_alone(join):
    model = tiny_model(join=join).eval()
    inputs, lengths = token_rows(6, 3)
    one, other = token_rows(7, 7, seed=1)[0], token_rows(7, 7, seed=2)[0]
    first = translate(model, inputs=inputs, lengths=lengths, targets=one)[:, 0]
    assert torch.equal(first, translate(model, inputs=inputs, lengths=lengths, targets=other)[:, 0])
    french = translate(model, inputs=inputs, lengths=lengths, targets=one, task="en_fr")[:, 0]
    assert not torch.allclose(first, french, atol=1e-3)
    moved = inputs.clone()
    moved[:, 0] = 7 + (moved[:, 0] - 6) % 23
    assert not torch.allclose(
        first, translate(model, inputs=moved, lengths=lengths, targets=one)[:, 0], atol=1e-4
    )


def test_the_command_is_the_only_sign_of_the_task():
    model = tiny_model().eval()
    model.tasks["en_de"] = TASKS[0].model_copy(update={"command_id": EN_FR})
    inputs, lengths = token_rows(6, 3)
    targets, _ = token_rows(5, 5, seed=1)
    same = [
        translate(model, inputs=inputs, lengths=lengths, targets=targets, task=task)
        for task in ("en_de", "en_fr")
    ]
    assert torch.equal(*same)


@JOINS
@pytest.mark.parametrize("experts", ["both", "none"])
def test_padding_of_the_input_changes_nothing(join, experts):
    model = tiny_model(join=join, experts=experts).eval().double()
    inputs, lengths = token_rows(6, 3)
    targets, _ = token_rows(5, 5, seed=1)
    logits = translate(model, inputs=inputs, lengths=lengths, targets=targets)
    padded = torch.nn.functional.pad(inputs, (0, 9))
    again = translate(model, inputs=padded, lengths=lengths, targets=targets)
    assert_close(again, logits, atol=1e-6, rtol=0)


@JOINS
def test_an_example_does_not_depend_on_its_batch(join):
    model = tiny_model(join=join).eval()
    inputs, lengths = token_rows(8, 3, 5)
    targets, _ = token_rows(5, 7, 2, seed=1)
    logits = translate(model, inputs=inputs, lengths=lengths, targets=targets)
    alone = translate(model, inputs=inputs[1:2, :3], lengths=lengths[1:2], targets=targets[1:2])
    assert_close(alone, logits[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("task", "shape"),
    [("speech", (40, 16)), ("sound", (1600,))],
)
def test_padding_of_sounds_changes_nothing(task, shape):
    model = tiny_model().eval()
    lengths = torch.tensor([shape[0], shape[0] * 5 // 8 + 1])
    inputs = torch.randn(2, *shape)
    inputs[1, lengths[1] :] = 0
    targets, _ = token_rows(4, 4, seed=1)
    with torch.no_grad():
        both = model(task=task, inputs=inputs, input_lengths=lengths, targets=targets).logits
        alone = model(
            task=task,
            inputs=inputs[1:, : int(lengths[1])],
            input_lengths=lengths[1:],
            targets=targets[1:],
        ).logits
    assert_close(alone, both[1:], atol=1e-5, rtol=0)


def test_the_encoder_leaves_zero_at_padding():
    model = tiny_model().eval()
    inputs, lengths = token_rows(6, 3)
    encoded = model.encode("en_de", inputs=inputs, input_lengths=lengths)
    assert encoded.values_BSD[1, 3:].abs().sum() == 0
    assert encoded.mask_BS.sum(1).tolist() == [6, 3]


def test_a_class_can_be_decoded_from_one_position():
    from mmtrain.modalities import label

    model = tiny_model(nets={"label": label.Config(reads="decoded")})
    inputs, lengths = torch.randn(2, 16, 24, 1), torch.tensor([16, 16])
    outputs = model(task="digits", inputs=inputs, input_lengths=lengths, targets=None)
    assert outputs.logits.shape == (2, 10)
    assert "body/decoder" in model.owners("digits")
    outputs.logits.sum().backward()
    assert model.get_parameter("heads.digits.command.weight").grad.abs().sum() > 0
