"""Decoding: token after token from a task's command, until the end-of-sequence token.

A step costs one position: what causal layers need of earlier ones is kept in a `Memory`, and gives
what a full pass over all positions would have given.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
        lengths: (B,) int64, tokens before the end token; `max_length` where none came.
        log_probs_B: log-probability of the tokens, the end token included, in nats.
    """

    tokens_BT: Tensor
    lengths: Tensor
    log_probs_B: Tensor


class Stepper:
    """One batch being decoded: hands out the next token's log-probabilities, given the last.

    `inputs` are as the task's input net takes them, or as the encoder has left them. With
    `cached=False` each step is a full pass over the tokens so far: slow, and the other's measure.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        *,
        task: str,
        inputs: Tensor | Encoded,
        input_lengths: Tensor | None = None,
        cached: bool = True,
    ) -> None:
        spec = model.task(task)
        if spec.command_id is None or spec.num_outputs is not None:
            raise DecodingError(f"task {task!r} has no sequence to decode; use its logits")
        self.command_id: int = spec.command_id
        self._body, self._head = model.body, model.head(task)
        if not isinstance(inputs, Encoded):
            assert input_lengths is not None, "raw inputs come with their lengths"
            inputs = model.encode(task, inputs=inputs, input_lengths=input_lengths)
        self.encoded: Encoded = inputs
        self._memory: Memory | None = self._body.remember(self.encoded) if cached else None
        self._tokens: list[Tensor] = []

    @property
    def batch(self) -> int:
        """Rows that are decoded."""
        return self.encoded.values_BSD.shape[0]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.encoded.values_BSD.device

    @property
    def length(self) -> int:
        """Tokens read so far, the command counted."""
        return len(self._tokens)

    def read(self, tokens_BT: Tensor) -> None:
        """Tokens that are given, such as the start of a target: one pass over all of them."""
        self._tokens += tokens_BT.unbind(1)
        if self._memory is not None and tokens_BT.shape[1]:
            shifted = self._head.resume(tokens_BT)
            self._body.resume(shifted, self.encoded, memory=self._memory)

    def next(self, last_B: Tensor) -> Tensor:
        """Log-probabilities (B, V) of what follows `last_B` (first the command); padding never."""
        self._tokens.append(last_B)
        if self._memory is None:
            shifted = self._head.resume(torch.stack(self._tokens, dim=1))
            decoded = self._body.decode(shifted, self.encoded)
        else:
            shifted = self._head.resume(last_B[:, None])
            decoded = self._body.resume(shifted, self.encoded, memory=self._memory)
        last = Encoded(decoded.values_BSD[:, -1:], decoded.mask_BS[:, -1:])
        logits_BV = self._head(last)[:, 0].float()
        logits_BV[:, PADDING_ID] = -torch.inf
        return logits_BV.log_softmax(dim=-1)

    def select(self, rows_B: Tensor) -> None:
        """Goes on with these rows of the batch, in this order; a row may come more than once."""
        encoded = self.encoded
        self.encoded = Encoded(
            encoded.values_BSD.index_select(0, rows_B),
            encoded.mask_BS.index_select(0, rows_B),
            encoded.grid,
        )
        self._tokens = [tokens_B.index_select(0, rows_B) for tokens_B in self._tokens]
        if self._memory is not None:
            self._memory.select(rows_B)


@contextmanager
def _evaluating(model: MultiTaskModel) -> Iterator[None]:
    """Eval mode without gradients; the mode before comes back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def greedy(
    model: MultiTaskModel,
    *,
    task: str,
    inputs: Tensor | Encoded,
    input_lengths: Tensor | None = None,
    max_length: int,
    cached: bool = True,
) -> Decoded:
    """The likeliest token at each step, until every row has ended or holds `max_length` tokens.

    Raises:
        DecodingError: the task's target is no sequence.
    """
    _check_length(max_length)
    with _evaluating(model):
        stepper = Stepper(
            model, task=task, inputs=inputs, input_lengths=input_lengths, cached=cached
        )
        batch, device = stepper.batch, stepper.device
        last_B = torch.full((batch,), stepper.command_id, dtype=torch.long, device=device)
        ended_B = torch.zeros(batch, dtype=torch.bool, device=device)
        log_probs_B = torch.zeros(batch, device=device)
        tokens: list[Tensor] = []
        while len(tokens) < max_length and not bool(ended_B.all()):
            best_B = stepper.next(last_B).max(dim=-1)
            log_probs_B = log_probs_B + best_B.values.masked_fill(ended_B, 0.0)
            last_B = best_B.indices.masked_fill(ended_B, PADDING_ID)
            ended_B = ended_B | (last_B == END_ID)
            tokens.append(last_B)
        return _decoded(torch.stack(tokens, dim=1), log_probs_B)


def _check_length(max_length: int) -> None:
    if max_length < 1:
        raise DecodingError(f"max_length {max_length}: allow 1 token or more")


def _decoded(tokens_BT: Tensor, log_probs_B: Tensor) -> Decoded:
    real_BT = (tokens_BT != PADDING_ID) & (tokens_BT != END_ID)
    return Decoded(tokens_BT, real_BT.sum(1), log_probs_B)


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


def beam(
    model: MultiTaskModel,
    *,
    task: str,
    inputs: Tensor | Encoded,
    input_lengths: Tensor | None = None,
    max_length: int,
    beam_size: int,
    length_penalty: float = 0.6,
    cached: bool = True,
) -> Decoded:
    """Best of `beam_size` hypotheses an example, by log-probability over `length_divisor`.

    Ended hypotheses stay in the beam and compete; the search ends when all of them have ended.

    Raises:
        DecodingError: the task's target is no sequence, or the beam holds nothing.
    """
    _check_length(max_length)
    if beam_size < 1:
        raise DecodingError(f"beam_size {beam_size}: use 1 (greedy) or more")
    with _evaluating(model):
        stepper = Stepper(
            model, task=task, inputs=inputs, input_lengths=input_lengths, cached=cached
        )
        batch, device = stepper.batch, stepper.device
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
    return _decoded(beams.tokens_BGT[rows_B, best_B], beams.log_probs_BG[rows_B, best_B])
