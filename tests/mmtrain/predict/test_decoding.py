import itertools
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mmtrain.models.model import MultiTaskModel
from mmtrain.predict import decoding
from mmtrain.predict.decoding import DecodingError, Stepper, beam, greedy, length_divisor
from tests.mmtrain.models.tiny import EN_DE, tiny_model, token_rows
from tests.mmtrain.predict.full_pass import FullPass

torch.set_num_threads(1)

JOINS = pytest.mark.parametrize("join", ["time", "none"])


def sources():
    inputs, lengths = token_rows(6, 3, 5)
    return {"task": "en_de", "inputs": inputs, "input_lengths": lengths}


def encoded(model: MultiTaskModel) -> dict[str, Any]:
    with torch.no_grad():
        return {"task": "en_de", "inputs": model.encode(**sources())}


@JOINS
@pytest.mark.parametrize("attention", ["all", "none"])
def test_a_cached_step_equals_the_full_pass(join, attention):
    if (join, attention) == ("none", "none"):
        pytest.skip("refused: a target would see nothing of its input")
    model = tiny_model(join=join, attention=attention).eval()
    targets, _ = token_rows(40, 40, 40, seed=1)
    with torch.no_grad():
        full = model(**sources(), targets=targets).logits
        full[..., 0] = -torch.inf
        stepper = Stepper(model, **encoded(model))
        last_B = torch.full((3,), EN_DE)
        for t in range(targets.shape[1]):
            step = stepper.next(last_B)
            assert_close(step, full[:, t].log_softmax(-1), atol=1e-5, rtol=0)
            last_B = targets[:, t]


@JOINS
def test_greedy_takes_the_likeliest_token_of_each_full_pass(join):
    model = tiny_model(join=join).eval()
    decoded = greedy(model, **encoded(model), max_length=9)
    with torch.no_grad():
        logits = model(**sources(), targets=decoded.tokens_BT).logits
    logits[..., 0] = -torch.inf
    for row in range(3):
        real = int((decoded.tokens_BT[row] != 0).sum())
        best = logits[row, :real].log_softmax(-1).max(-1)
        assert best.indices.tolist() == decoded.tokens_BT[row, :real].tolist()
        assert_close(decoded.log_probs_B[row], best.values.sum(), atol=1e-4, rtol=0)


@JOINS
@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_cached_beam_equals_an_uncached_one(join, beam_size, monkeypatch):
    model = tiny_model(join=join).eval()
    cached = beam(model, **encoded(model), max_length=8, beam_size=beam_size)
    monkeypatch.setattr(decoding, "Stepper", FullPass)
    full = beam(model, **encoded(model), max_length=8, beam_size=beam_size)
    assert torch.equal(cached.tokens_BT, full.tokens_BT)
    assert_close(cached.log_probs_B, full.log_probs_B, atol=1e-4, rtol=0)


def test_a_beam_of_one_is_greedy():
    model = tiny_model().eval()
    one = beam(model, **encoded(model), max_length=8, beam_size=1)
    best = greedy(model, **encoded(model), max_length=8)
    assert torch.equal(one.tokens_BT, best.tokens_BT)
    assert_close(one.log_probs_B, best.log_probs_B)


def test_a_wide_beam_finds_the_best_of_all_sequences():
    model = tiny_model().eval()
    found = beam(model, **encoded(model), max_length=2, beam_size=900, length_penalty=0.0)
    with torch.no_grad():
        every = torch.tensor(list(itertools.product(range(1, 30), repeat=2)))
        row = {name: value[:1] for name, value in sources().items() if name != "task"}
        repeated = {name: value.repeat_interleave(len(every), 0) for name, value in row.items()}
        logits = model(task="en_de", **repeated, targets=every).logits
    logits[..., 0] = -torch.inf
    scores = logits.log_softmax(-1).gather(2, every[:, :, None]).squeeze(2)
    total = torch.where(every[:, 0] == 1, scores[:, 0], scores.sum(1))  # 1 ends a sequence
    assert_close(found.log_probs_B[0], total.max(), atol=1e-4, rtol=0)


def test_a_row_that_has_ended_is_padded_and_costs_nothing_more():
    model = tiny_model().eval()
    rows = greedy(model, **encoded(model), max_length=12).tokens_BT.tolist()
    lengths = [tokens.index(1) if 1 in tokens else 12 for tokens in rows]
    assert lengths == [6, 12, 0]
    for tokens, length in zip(rows, lengths, strict=True):
        assert 0 not in tokens[:length]
        assert set(tokens[length + 1 :]) <= {0}


def test_length_divisor_is_the_formula():
    divisor = length_divisor(torch.tensor([1, 7]), length_penalty=1.0)
    assert_close(divisor, torch.tensor([1.0, 2.0]))


def test_what_cannot_be_decoded_is_refused():
    model = tiny_model().eval()
    inputs = encoded(model)["inputs"]
    with pytest.raises(DecodingError, match="'digits' has no sequence"):
        greedy(model, task="digits", inputs=inputs, max_length=3)
    with pytest.raises(DecodingError, match="beam_size 0"):
        beam(model, task="en_de", inputs=inputs, max_length=3, beam_size=0)
