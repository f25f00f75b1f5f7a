"""Decoding: token after token from a task's command, until the end-of-sequence token.

A step costs one position: what causal layers need of earlier ones is kept in a `Memory`, and gives
what a full pass over all positions would have given.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.memory import Memory
from mmtrain.models.model import MultiTaskModel
from pipelines.errors import MMTrainError

PADDING_ID = 0
END_ID = 1


class DecodingError(MMTrainError):
    """A task or a setting with which nothing can be decoded."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Decoded targets.

    Args:
        tokens_BT: ids, the end token included, padded with 0.
        log_probs_B: log-probability of the tokens, the end token included, in nats.
    """

    tokens_BT: Tensor
    log_probs_B: Tensor


class Stepper:
    """One batch being decoded: hands out the next token's log-probabilities, given the last.

    Args:
        model: that answers.
        task: name of the task; its target is a sequence.
        inputs: the batch as the encoder left it.

    Raises:
        DecodingError: the task's target is no sequence.
    """

    def __init__(self, model: MultiTaskModel, *, task: str, inputs: Encoded) -> None:
        spec = model.task(task)
        if spec.command_id is None or spec.num_outputs is not None:
            raise DecodingError(f"task {task!r} has no sequence to decode; use its logits")
        self.command_id: int = spec.command_id
        self.body, self.head = model.body, model.head(task)
        self.encoded = inputs
        self._memory: Memory = self.body.remember(inputs)

    def next(self, last_B: Tensor) -> Tensor:
        """Log-probabilities (B, V) of what follows `last_B` (first the command); padding never."""
        shifted = self.head.resume(last_B[:, None])
        return self.scores(self.body.resume(shifted, self.encoded, memory=self._memory))

    def scores(self, decoded: Encoded) -> Tensor:
        """Log-probabilities (B, V) of what follows the last of the decoded positions."""
        last = Encoded(decoded.values_BSD[:, -1:], decoded.mask_BS[:, -1:])
        logits_BV = self.head(last)[:, 0].float()
        logits_BV[:, PADDING_ID] = -torch.inf
        return logits_BV.log_softmax(dim=-1)

    def select(self, rows_B: Tensor) -> None:
        """Goes on with these rows of the batch, in this order; a row may come more than once."""
        values_BSD, mask_BS = self.encoded.values_BSD, self.encoded.mask_BS
        self.encoded = Encoded(
            values_BSD.index_select(0, rows_B), mask_BS.index_select(0, rows_B), self.encoded.grid
        )
        self._memory.select(rows_B)


@torch.no_grad()
def greedy(model: MultiTaskModel, *, task: str, inputs: Encoded, max_length: int) -> Decoded:
    """The likeliest token at each step, until every row has ended or holds `max_length` tokens.

    Raises:
        DecodingError: the task's target is no sequence.
    """
    stepper = Stepper(model, task=task, inputs=inputs)
    batch, device = inputs.mask_BS.shape[0], inputs.mask_BS.device
    last_B = torch.full((batch,), stepper.command_id, device=device)
    ended_B = torch.zeros(batch, dtype=torch.bool, device=device)
    log_probs_B = torch.zeros(batch, device=device)
    tokens: list[Tensor] = []
    while len(tokens) < max_length and not bool(ended_B.all()):
        best_B = stepper.next(last_B).max(dim=-1)
        log_probs_B = log_probs_B + best_B.values.masked_fill(ended_B, 0.0)
        last_B = best_B.indices.masked_fill(ended_B, PADDING_ID)
        ended_B = ended_B | (last_B == END_ID)
        tokens.append(last_B)
    return Decoded(torch.stack(tokens, dim=1), log_probs_B)


@dataclass(frozen=True, slots=True)
class Beams:
    """Hypotheses of a batch, G to an example: open ones go on, ended ones are kept as they are."""

    tokens_BGT: Tensor
    log_probs_BG: Tensor
    ended_BG: Tensor


def length_divisor(lengths: Tensor, *, length_penalty: float) -> Tensor:
    """((5 + length) / 6)^alpha, the end token counted.

    Wu et al., arXiv:1609.08144, Eq. 14; alpha 0 compares plain log-probabilities.
    """
    return ((5.0 + lengths) / 6.0) ** length_penalty


@torch.no_grad()
def beam(
    model: MultiTaskModel,
    *,
    task: str,
    inputs: Encoded,
    max_length: int,
    beam_size: int,
    length_penalty: float = 0.6,
) -> Decoded:
    """Best of `beam_size` hypotheses an example, by log-probability over `length_divisor`.

    Ended hypotheses stay in the beam and compete; the search ends when all of them have ended.

    Raises:
        DecodingError: the task's target is no sequence, or the beam holds nothing.
    """
    if beam_size < 1:
        raise DecodingError(f"beam_size {beam_size}: use 1 (greedy) or more")
    stepper = Stepper(model, task=task, inputs=inputs)
    batch, device = inputs.mask_BS.shape[0], inputs.mask_BS.device
    stepper.select(torch.arange(batch, device=device).repeat_interleave(beam_size))
    beams = _first_beams(batch, beam_size, device=device)
    last_BG = torch.full((batch, beam_size), stepper.command_id, device=device)
    for _ in range(max_length):
        log_probs_BGV = stepper.next(last_BG.flatten()).unflatten(0, (batch, beam_size))
        beams, parent_BG = _extend(beams, log_probs_BGV, length_penalty=length_penalty)
        if bool(beams.ended_BG.all()):
            break
        first_B1 = torch.arange(batch, device=device)[:, None] * beam_size
        stepper.select((first_B1 + parent_BG).flatten())
        last_BG = beams.tokens_BGT[:, :, -1]
    return _best(beams, length_penalty=length_penalty)


def _first_beams(batch: int, beam_size: int, *, device: torch.device) -> Beams:
    """One empty hypothesis an example; the others are impossible, for they would be the same."""
    log_probs_BG = torch.full((batch, beam_size), -torch.inf, device=device)
    log_probs_BG[:, 0] = 0.0
    return Beams(
        tokens_BGT=torch.zeros((batch, beam_size, 0), dtype=torch.long, device=device),
        log_probs_BG=log_probs_BG,
        ended_BG=torch.zeros((batch, beam_size), dtype=torch.bool, device=device),
    )


def _extend(beams: Beams, log_probs_BGV: Tensor, *, length_penalty: float) -> tuple[Beams, Tensor]:
    """The best continuations of all hypotheses of an example, and whom each continues, (B, G)."""
    _, size, vocabulary = log_probs_BGV.shape
    only_padding_V = torch.full((vocabulary,), -torch.inf, device=log_probs_BGV.device)
    only_padding_V[PADDING_ID] = 0.0
    log_probs_BGV = torch.where(beams.ended_BG[:, :, None], only_padding_V, log_probs_BGV)
    total_BGV = beams.log_probs_BG[:, :, None] + log_probs_BGV
    ended_length_BG = (beams.tokens_BGT != PADDING_ID).sum(-1)
    length_BG = ended_length_BG + (~beams.ended_BG).long()
    score_BGV = total_BGV / length_divisor(length_BG, length_penalty=length_penalty)[:, :, None]
    chosen_BG = score_BGV.flatten(1).topk(size, dim=1).indices
    parent_BG, token_BG = chosen_BG // vocabulary, chosen_BG % vocabulary
    history_BGT = beams.tokens_BGT.gather(
        1, parent_BG[:, :, None].expand(-1, -1, beams.tokens_BGT.shape[2])
    )
    extended = Beams(
        tokens_BGT=torch.cat([history_BGT, token_BG[:, :, None]], dim=2),
        log_probs_BG=total_BGV.flatten(1).gather(1, chosen_BG),
        ended_BG=beams.ended_BG.gather(1, parent_BG) | (token_BG == END_ID),
    )
    return extended, parent_BG


def _best(beams: Beams, *, length_penalty: float) -> Decoded:
    lengths_BG = (beams.tokens_BGT != PADDING_ID).sum(-1)
    divisor_BG = length_divisor(lengths_BG, length_penalty=length_penalty)
    best_B = (beams.log_probs_BG / divisor_BG).argmax(dim=1)
    rows_B = torch.arange(len(best_B), device=best_B.device)
    return Decoded(beams.tokens_BGT[rows_B, best_B], beams.log_probs_BG[rows_B, best_B])
