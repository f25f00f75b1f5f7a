"""Each input net, with the label head behind it, learns a toy task within seconds."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtrain.modalities import image, label, spectral, waveform

torch.set_num_threads(1)

TONES_HZ = (200.0, 400.0, 700.0, 1200.0)
RATE_HZ = 4000


def tones(batch: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A quarter of a second of one of four tones, of any phase and loudness, in noise."""
    classes = torch.randint(0, 4, (batch,), generator=generator)
    time_s = torch.arange(RATE_HZ // 4) / RATE_HZ
    phase = torch.rand(batch, 1, generator=generator) * 2 * math.pi
    pitch = torch.tensor(TONES_HZ)[classes][:, None]
    loudness = 0.05 + torch.rand(batch, 1, generator=generator)
    clean = torch.sin(2 * math.pi * pitch * time_s + phase)
    noise = torch.randn(batch, len(time_s), generator=generator)
    return loudness * (clean + 0.5 * noise), classes


def spectra(batch: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same as 31 log-energy frames of 16 bins."""
    samples, classes = tones(batch, generator=generator)
    frames = samples.unfold(1, 64, 32) * torch.hann_window(64)
    energies = torch.fft.rfft(frames).abs()[..., :32].unflatten(-1, (16, 2)).sum(-1)
    return (1e-3 + energies).log(), classes


def bars(batch: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A bar in noise, across, down or along one of the diagonals."""
    classes = torch.randint(0, 4, (batch,), generator=generator)
    places = torch.arange(16)
    y, x = places[:, None], places[None, :]
    shift = torch.randint(-4, 5, (batch, 1, 1), generator=generator)
    lines = torch.stack([y - 8 + 0 * x, x - 8 + 0 * y, y - x, y + x - 15])[classes]
    picture = ((lines - shift).abs() <= 1).float()
    return (picture + 0.3 * torch.randn(picture.shape, generator=generator))[..., None], classes


CASES = {
    "waveform": (waveform.Input, waveform.Config(), tones),
    "spectral": (spectral.Input, spectral.Config(), spectra),
    "image": (image.Input, image.Config(channels=1), bars),
}


@pytest.mark.parametrize("net", CASES)
def test_a_net_learns(net):
    build, config, draw = CASES[net]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    stem = build(config, model_dim=32, vocab_size=1)
    head = label.Output(label.Config(), model_dim=32, vocab_size=1, num_outputs=4, dims=build.dims)
    model = nn.ModuleList([stem, head])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    for _ in range(60):
        inputs, classes = draw(32, generator=generator)
        lengths = torch.full((32,), inputs.shape[1])
        F.cross_entropy(head(stem(inputs, lengths)), classes).backward()
        optimizer.step()
        optimizer.zero_grad()
    inputs, classes = draw(200, generator=generator)
    with torch.no_grad():
        logits = head(stem(inputs, torch.full((200,), inputs.shape[1])))
    accuracy = (logits.argmax(1) == classes).float().mean().item()
    assert accuracy > 0.9, accuracy  # chance: 0.25
