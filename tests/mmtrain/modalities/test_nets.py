import pytest
import torch
from torch.testing import assert_close

from mmtrain import modalities
from mmtrain.modalities import image, label, spectral, text, waveform
from pipelines.errors import UnknownNameError

torch.set_num_threads(1)

SIZES = {"model_dim": 16, "vocab_size": 20}


@pytest.mark.parametrize(
    ("size", "config", "grid"),
    [
        ((299, 299), image.Config.paper(), (19, 19)),  # 299, 150, 75, 38, 19
        ((32, 32), image.Config.paper(), (2, 2)),
        ((32, 32), image.Config(channels=1), (4, 4)),
        ((33, 50), image.Config(channels=1), (5, 7)),
        ((32, 32), image.Config.tiny(), (32, 32)),
        ((9, 8), image.Config.tiny(stride=2), (5, 4)),
    ],
)
def test_images_become_positions_by_halving_upwards(size, config, grid):
    net = image.Input(config, **SIZES)
    pixels = torch.randint(0, 256, (1, *size, config.channels), dtype=torch.uint8)
    with torch.no_grad():
        encoded = net(pixels, torch.tensor([size[0]]))
    assert encoded.grid == grid
    assert encoded.values_BSD.shape == (1, grid[0] * grid[1], 16)
    assert encoded.mask_BS.all()


def test_the_paper_profile_of_the_spectral_net_keeps_every_bin_and_halves_time_nine_times():
    net = spectral.Input(spectral.Config.paper(), **SIZES)
    with torch.no_grad():
        encoded = net(torch.randn(2, 1030, 6), torch.tensor([1030, 500]))
    assert encoded.grid == (3, 6)  # ceil(1030 / 512)
    assert encoded.mask_BS.sum(1).tolist() == [3 * 6, 1 * 6]


def test_the_paper_profile_of_the_waveform_net_halves_time_nine_times():
    net = waveform.Input(waveform.Config.paper(), **SIZES)
    with torch.no_grad():
        encoded = net(torch.randn(2, 2100), torch.tensor([2100, 513]))
    assert encoded.values_BSD.shape == (2, 5, 16)  # ceil(2100 / 512)
    assert encoded.mask_BS.sum(1).tolist() == [5, 2]
    assert encoded.grid is None


def test_loudness_and_range_of_raw_values_change_nothing():
    torch.manual_seed(0)
    sound = waveform.Input(waveform.Config(), **SIZES)
    samples, length = torch.randn(1, 2000), torch.tensor([2000])
    assert_close(
        sound(samples, length).values_BSD,
        sound(samples * 0.1, length).values_BSD,
        atol=1e-4,
        rtol=0,
    )
    picture = image.Input(image.Config(channels=1), **SIZES)
    pixels = torch.randint(0, 256, (1, 16, 16, 1), dtype=torch.uint8)
    size = torch.tensor([16])
    assert_close(
        picture(pixels, size).values_BSD,
        picture(pixels.float() / 255, size).values_BSD,
        atol=1e-4,
        rtol=0,
    )


def test_text_embeds_padding_as_zero_and_tokens_with_unit_variance():
    torch.manual_seed(0)
    net = text.Input(text.Config(), model_dim=64, vocab_size=500)
    encoded = net(torch.tensor([[5, 6, 0, 0]]), torch.tensor([2]))
    assert encoded.values_BSD[0, 2:].abs().sum() == 0
    assert encoded.mask_BS.tolist() == [[True, True, False, False]]
    assert 0.9 < net.embed(torch.arange(1, 500)).std() < 1.1


def test_targets_are_shifted_behind_their_command():
    net = text.Output(text.Config(), **SIZES, num_outputs=None, dims=1)
    targets = torch.tensor([[7, 8, 1, 0], [9, 1, 0, 0]])
    shifted = net.start(targets, command_id=3, lengths_B=torch.tensor([3, 2]))
    expected = net.embed(torch.tensor([[3, 7, 8, 1], [3, 9, 1, 0]]))
    assert torch.equal(shifted.values_BSD, expected)
    assert shifted.mask_BS.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert targets.tolist() == [[7, 8, 1, 0], [9, 1, 0, 0]]


@pytest.mark.parametrize("dims", [1, 2])
def test_a_label_head_reads_a_sequence_and_a_grid_of_any_length(dims):
    from mmtrain.layers.encoded import Encoded

    torch.manual_seed(0)
    net = label.Output(label.Config(), **SIZES, num_outputs=7, dims=dims)
    values_BSD = torch.randn(1, 15, 16)
    grid = (5, 3) if dims == 2 else None
    logits = net(Encoded(values_BSD, torch.ones(1, 15, dtype=torch.bool), grid))
    assert logits.shape == (1, 7)
    padded = torch.cat([values_BSD, torch.randn(1, 6, 16)], dim=1)
    mask_BS = (torch.arange(21) < 15)[None]
    again = net(Encoded(padded, mask_BS, (7, 3) if dims == 2 else None))
    assert_close(again, logits, atol=1e-5, rtol=1e-5)


def test_a_separable_convolution_of_one_channel_has_one_pattern_and_ours_has_many():
    """Why the waveform net starts with an ordinary convolution."""
    torch.manual_seed(0)
    samples = torch.randn(1, 400, 1, 1)
    as_worded = torch.nn.Linear(1, 16, bias=False)
    rows = torch.nn.functional.layer_norm(as_worded(samples[0, :, 0]), (16,))
    assert torch.linalg.matrix_rank(rows, rtol=1e-3) == 1
    net = waveform.Input(waveform.Config(), **SIZES)
    ours = net.flow.stems[0](samples, None).flatten(0, 2)
    assert torch.linalg.matrix_rank(ours, rtol=1e-3) == min(ours.shape[1] - 1, ours.shape[0])


def test_an_unknown_net_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="nearest: waveform"):
        modalities.load("wave_form")
    assert {"image", "label", "spectral", "text", "waveform"} <= set(modalities.names())
