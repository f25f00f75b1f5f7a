"""The body of MultiModel, value by value, against loops written from the paper's figures.

arXiv:1706.05137, Sec. 2.1 to 2.4. A twin knows one example without padding, in evaluation mode.
"""

import math

import numpy as np
import pytest
import torch

from mmtrain.layers.encoded import Encoded
from mmtrain.models import multimodel

torch.set_num_threads(1)

DIM, HEADS, ACTIVE = 8, 2, 2
GATE_ROUNDING = 1e-5  # the gate computes in float32


class Twin:
    """The equations over (L, D), weights by their names in the body."""

    def __init__(self, body):
        self.weights = {name: value.detach().numpy() for name, value in body.named_parameters()}

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return centred / deviation * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def conv_step(self, x, name, *, causal, dilation=1):
        """LN(SepConv(ReLU(x)))."""
        taps = self.weights[f"{name}.depthwise.weight"]
        first = (len(taps) - 1) * dilation if causal else (len(taps) - 1) * dilation // 2
        out = np.zeros_like(x)
        for t in range(len(x)):
            for tap, weight in enumerate(taps):
                source = t + tap * dilation - first
                if 0 <= source < len(x):
                    out[t] += weight * np.maximum(x[source], 0)
        return self.norm(out @ self.weights[f"{name}.pointwise.weight"].T, f"{name}.norm")

    def conv_block(self, x, name, *, causal):
        h1 = self.conv_step(x, f"{name}.step1", causal=causal)
        h2 = x + self.conv_step(h1, f"{name}.step2", causal=causal)
        h3 = self.conv_step(h2, f"{name}.step3", causal=causal)
        return x + self.conv_step(h3, f"{name}.step4", causal=causal, dilation=8)

    def attention(self, target, source, name, *, causal, source_is_target=False):
        z = self.conv_step(target + timing(len(target)), f"{name}.step1", causal=causal)
        z = self.conv_step(z, f"{name}.step2", causal=causal, dilation=4)
        query = dot_product(z, z, z, causal=causal)
        keys, values = (
            source @ self.weights[f"{name}.{part}.weight"].T for part in ("key", "value")
        )
        out = dot_product(query, keys, values, causal=causal and source_is_target)
        last = self.weights.get(f"{name}.output.weight", np.eye(DIM))
        return out @ last.T

    def experts(self, x, name):
        """LN(x + sum over the k best experts of softmax gate times W2 ReLU(W1 x))."""
        w_in, w_out = self.weights[f"{name}.experts.w_in"], self.weights[f"{name}.experts.w_out"]
        out = np.zeros_like(x)
        for t, row in enumerate(x):
            scores = self.weights[f"{name}.gate.clean.weight"] @ row
            best = np.argsort(-scores)[:ACTIVE]
            gates = np.exp(scores[best]) / np.exp(scores[best]).sum()
            for gate, expert in zip(gates, best, strict=True):
                out[t] += gate * np.maximum(row @ w_in[expert], 0) @ w_out[expert]
        return self.norm(x + out, f"{name}.norm")

    def encode(self, x):
        h = x + timing(len(x))
        for place in range(3):
            h = self.conv_block(h, f"encoder.conv_blocks.{place}", causal=False)
        h = self.experts(h, "encoder.moe")
        for place in range(3):
            name = f"encoder.attending_blocks.{place}"
            c = self.conv_block(h, f"{name}.conv", causal=False)
            h = c + self.attention(c, h, f"{name}.attention", causal=False)
        return h

    def mix(self, encoded, shifted):
        a = self.attention(shifted, encoded, "mixer.attention", causal=True)
        u = self.conv_step(np.concatenate([a, shifted], -1), "mixer.join", causal=True)
        for place in range(2):
            name = f"mixer.blocks.{place}"
            c = self.conv_block(u, f"{name}.conv", causal=True)
            u = c + self.attention(c, u, f"{name}.attention", causal=True, source_is_target=True)
        return u

    def decode(self, encoded, shifted, *, join):
        mixed = self.mix(encoded, shifted)
        u = np.concatenate([encoded, mixed]) if join == "time" else mixed
        for place in (1, 2):
            u = self.conv_step(u, f"decoder.step{place}", causal=True)
        for place in range(4):
            u = self.experts(u, "decoder.moe") if place == 2 else u
            name = f"decoder.blocks.{place}"
            c = self.conv_block(u, f"{name}.conv", causal=True)
            u = c + self.attention(c, encoded, f"{name}.attention", causal=True)
        return u[-len(shifted) :]


def timing(length):
    """sin and cos of t / 10000^(2c / D) at channels 2c and 2c + 1."""
    signal = np.zeros((length, DIM))
    for t in range(length):
        for channel in range(0, DIM, 2):
            angle = t * 10000 ** (-channel / DIM)
            signal[t, channel : channel + 2] = math.sin(angle), math.cos(angle)
    return signal


def dot_product(queries, keys, values, *, causal):
    """softmax(q k / sqrt(D / heads)) v, head by head; causal: up to the query's own position."""
    out, width = np.zeros_like(queries), DIM // HEADS
    for head in range(HEADS):
        own = slice(head * width, (head + 1) * width)
        for t, query in enumerate(queries):
            last = t + 1 if causal else len(keys)
            shares = np.exp(keys[:last, own] @ query[own] / math.sqrt(width))
            out[t, own] = shares @ values[:last, own] / shares.sum()
    return out


@pytest.mark.parametrize("join", ["time", "none"])
@pytest.mark.parametrize("attention_output", ["none", "linear"])
def test_the_body_has_the_published_values_whatever_the_padding(join, attention_output):
    config = multimodel.Config.paper().model_copy(
        update={
            "model_dim": DIM, "num_heads": HEADS, "num_experts": 5, "active_experts": ACTIVE,
            "expert_dim": 6, "join": join, "attention_output": attention_output,
        }
    )  # fmt: skip
    body = multimodel.Body(config).double().eval()
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    for parameter in body.parameters():
        parameter.data = draw(*parameter.shape) * 0.5
    lengths, target_lengths = [21, 13], [6, 9]
    inputs = Encoded(draw(2, 21, DIM), torch.arange(21) < torch.tensor(lengths)[:, None])
    shifted = Encoded(draw(2, 9, DIM), torch.arange(9) < torch.tensor(target_lengths)[:, None])
    with torch.no_grad():
        encoded = body.encode(inputs)
        decoded = body.decode(shifted, encoded)
    twin = Twin(body)
    for row, (length, target_length) in enumerate(zip(lengths, target_lengths, strict=True)):
        expected = twin.encode(inputs.values_BSD[row, :length].numpy())
        found = encoded.values_BSD[row, :length].numpy()
        np.testing.assert_allclose(found, expected, atol=GATE_ROUNDING)
        target = shifted.values_BSD[row, :target_length].numpy()
        expected = twin.decode(expected, target, join=join)
        found = decoded.values_BSD[row, :target_length].numpy()
        np.testing.assert_allclose(found, expected, atol=GATE_ROUNDING)
