"""The published nets of MultiModel, value by value, against loops written from the equations.

arXiv:1706.05137, Sec. 2.5. A twin knows one example without padding; it sees one window at a time.
A window that leaves the grid sees zeros there, or nothing where the largest value is taken.
"""

import numpy as np
import pytest
import torch
from torch import nn

from mmtrain.layers.encoded import Encoded
from mmtrain.modalities import image, label, spectral, text, waveform

torch.set_num_threads(1)

DIM, VOCAB = 12, 9
SIZES = {"model_dim": DIM, "vocab_size": VOCAB}


def drawn(net):
    """The net in float64 with all weights drawn, gains and shifts of norms too."""
    generator = torch.Generator().manual_seed(0)
    net = net.double().eval()
    for parameter in net.parameters():
        size = parameter.shape
        parameter.data = torch.randn(size, generator=generator, dtype=torch.float64) * 0.5
    return net


def weights_of(net):
    return {name: value.detach().numpy() for name, value in net.named_parameters()}


class Twin:
    """Steps of the equations on one grid (rows, columns, channels), weights by name."""

    def __init__(self, net):
        self.weights = weights_of(net)

    def norm(self, x, name):
        mean = x.mean(-1, keepdims=True)
        deviation = np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6)
        gain, shift = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return (x - mean) / deviation * gain + shift

    def conv_step(self, x, name, *, stride=(1, 1), ends="same"):
        """LN(SepConv(ReLU(x))): one filter a channel, then a matrix over channels."""
        filters = self.weights[f"{name}.depthwise.weight"][:, 0].transpose(1, 2, 0)  # (h, w, C)
        kernel, matrix = filters.shape[:2], self.weights[f"{name}.pointwise.weight"]
        out = [
            [matrix @ (window * filters).sum((0, 1)) for window in line]
            for line in windows(np.maximum(x, 0), kernel, stride=stride, ends=ends, outside=0)
        ]
        return self.norm(np.array(out), f"{name}.norm")

    def conv(self, x, name, *, stride):
        """LN(Conv(x)), with a bias."""
        kernels, bias = self.weights[f"{name}.conv.weight"], self.weights[f"{name}.conv.bias"]
        out = [
            [np.einsum("yxc,fcyx->f", window, kernels) + bias for window in line]
            for line in windows(x, kernels.shape[2:], stride=stride, ends="same", outside=0)
        ]
        return self.norm(np.array(out), f"{name}.norm")

    def conv_res(self, x, name, *, kernel, stride, shortcut_relu):
        """MaxPool(ConvStep(ConvStep(x))) + LN(Conv_1x1(x or ReLU(x))), both with the stride."""
        deep = self.conv_step(self.conv_step(x, f"{name}.step1"), f"{name}.step2")
        kept = x[:: stride[0], :: stride[1]]
        kept = np.maximum(kept, 0) if shortcut_relu else kept
        across = self.norm(kept @ self.weights[f"{name}.across.weight"].T, f"{name}.norm")
        return largest(deep, kernel, stride=stride, ends="same") + across


def windows(x, kernel, *, stride, ends, outside):
    """Windows around every stride-th position, or ending there ("left"), line by line."""
    rows, columns = x.shape[:2]
    above = kernel[0] - 1 if ends == "left" else kernel[0] // 2
    beside = kernel[1] // 2
    for row in range(0, rows, stride[0]):
        line = []
        for column in range(0, columns, stride[1]):
            window = np.full((*kernel, x.shape[2]), outside, dtype=float)
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    y, z = row + i - above, column + j - beside
                    if 0 <= y < rows and 0 <= z < columns:
                        window[i, j] = x[y, z]
            line.append(window)
        yield line


def largest(x, kernel, *, stride, ends):
    found = windows(x, kernel, stride=stride, ends=ends, outside=-np.inf)
    return np.array([[window.max((0, 1)) for window in line] for line in found])


def standardised(x):
    centred = x - x.mean()
    return centred / max(np.sqrt((centred**2).mean()), x.size**-0.5)


def image_in(net, pixels):
    twin, halve = Twin(net), (2, 2)
    h1 = twin.conv(standardised(pixels), "flow.stems.0", stride=halve)
    x = twin.conv(np.maximum(h1, 0), "flow.stems.1", stride=(1, 1))
    for place in range(3):  # the shortcut has a ReLU in the first block alone
        x = twin.conv_res(
            x, f"flow.blocks.{place}", kernel=(3, 3), stride=halve, shortcut_relu=place == 0
        )
    return x


def audio_in(net, grid, *, kernel, stride):
    """The convolution before the blocks is ours: see `GridConv`."""
    twin = Twin(net)
    x = twin.conv(standardised(grid), "flow.stems.0", stride=(1, 1))
    for place in range(9):  # the shortcut has a ReLU in the eight, not in the last, of width D
        x = twin.conv_res(
            x, f"flow.blocks.{place}", kernel=kernel, stride=stride, shortcut_relu=place < 8
        )
    return x


def categorical_out(net, x, *, kernel, stride, ends):
    twin = Twin(net)
    skip = twin.conv_step(x, "flow.skip", stride=stride, ends=ends)
    h2 = twin.conv_step(twin.conv_step(x, "flow.step1", ends=ends), "flow.step2", ends=ends)
    h3 = skip + largest(h2, kernel, stride=stride, ends=ends)
    h5 = twin.conv_step(twin.conv_step(h3, "flow.step4", ends=ends), "flow.step5", ends=ends)
    h6 = np.maximum(h5, 0).mean((0, 1))
    return twin.weights["project.weight"] @ h6 + twin.weights["project.bias"]


@pytest.mark.parametrize("size", [(37, 50), (16, 33)])
def test_the_image_net_has_the_published_values(size):
    net = drawn(image.Input(image.Config.paper(), **SIZES))
    pixels = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    with torch.no_grad():
        encoded = net(pixels, torch.tensor([size[0]] * 2))
    for values, picture in zip(encoded.values_BSD, pixels.numpy().astype(float), strict=True):
        expected = image_in(net, picture)
        assert encoded.grid == expected.shape[:2]
        np.testing.assert_allclose(values.numpy(), expected.reshape(-1, DIM), atol=1e-4)


@pytest.mark.parametrize(
    ("net", "shape", "kernel", "stride"),
    [
        (spectral.Input(spectral.Config.paper(), **SIZES), (4,), (3, 3), (2, 1)),
        (waveform.Input(waveform.Config.paper(), **SIZES), (), (3, 1), (2, 1)),
    ],
)
def test_the_audio_nets_have_the_published_values_behind_which_padding_is_not_heard(
    net, shape, kernel, stride
):
    net, lengths = drawn(net), [600, 513, 90]
    sounds = torch.randn(3, 600, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        encoded = net(sounds, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        grid = sounds[row, :length].numpy().astype(float).reshape(length, -1, 1)
        expected = audio_in(net, grid, kernel=kernel, stride=stride).reshape(-1, DIM)
        assert encoded.mask_BS[row].sum() == len(expected) == -(-length // 512) * grid.shape[1]
        found = encoded.values_BSD[row, : len(expected)].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("dims", "grid", "kernel", "stride", "ends"),
    [(2, (6, 5), (3, 3), (2, 2), "same"), (1, (11, 1), (5, 1), (4, 1), "left")],
)
@pytest.mark.parametrize("config", [label.Config.paper(), label.Config()])
def test_the_categorical_net_has_the_published_values_whatever_the_padding(
    config, dims, grid, kernel, stride, ends
):
    net = drawn(label.Output(config, **SIZES, num_outputs=7, dims=dims))
    rows, columns = grid
    generator = torch.Generator().manual_seed(1)
    values_BSD = torch.randn(2, rows * columns, DIM, generator=generator, dtype=torch.float64)
    real_rows = [rows, rows - 3]
    mask_BY = torch.arange(rows) < torch.tensor(real_rows)[:, None]
    encoded = Encoded(
        values_BSD, mask_BY.repeat_interleave(columns, 1), grid if dims == 2 else None
    )
    with torch.no_grad():
        logits = net(encoded)
    for found, values, count in zip(logits, values_BSD.numpy(), real_rows, strict=True):
        x = values.reshape(rows, columns, DIM)[:count]
        expected = categorical_out(net, x, kernel=kernel, stride=stride, ends=ends)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_the_categorical_net_has_the_published_widths():
    for config, widths in [
        (label.Config.paper(), (1024, 1536, 2048)),
        (label.Config(), (1280, 2048, 2560)),  # tensor2tensor's
    ]:
        with torch.device("meta"):
            net = label.Output(config, model_dim=1024, vocab_size=2, num_outputs=1000, dims=2)
        assert isinstance(net.project, nn.Linear)
        assert [step.pointwise.out_features for step in (net.flow.step2, net.flow.step4)] == [
            *widths[:2]
        ]
        assert net.project.weight.shape == (1000, widths[2])


def test_the_language_net_has_the_published_values():
    """in(x) = W_E[x] sqrt(D), zero at padding; out(h) = softmax(W_S h)."""
    stem = drawn(text.Input(text.Config(), **SIZES))
    head = drawn(text.Output(text.Config(), **SIZES, num_outputs=None, dims=1))
    tokens = [[4, 7, 1], [3, 1, 0]]
    with torch.no_grad():
        encoded = stem(torch.tensor(tokens), torch.tensor([3, 2]))
        probabilities = head(encoded).softmax(-1)
    rows, matrix = weights_of(stem)["embed.table.weight"], weights_of(head)["project.weight"]
    for example, ids in enumerate(tokens):
        for place, token in enumerate(ids):
            if token == 0:
                continue
            embedded = rows[token] * 12**0.5
            found = encoded.values_BSD[example, place].numpy()
            np.testing.assert_allclose(found, embedded, atol=1e-12)
            scores = np.exp(matrix @ embedded)
            found = probabilities[example, place].numpy()
            np.testing.assert_allclose(found, scores / scores.sum(), atol=1e-12)
    assert encoded.mask_BS.tolist() == [[True, True, True], [True, True, False]]
