import pytest
import torch
from torch.testing import assert_close

from mmtrain.layers.encoded import Encoded
from mmtrain.layers.patches import InputSizeError
from mmtrain.modalities import (
    audio_patches,
    elements,
    image_patches,
    linear,
    text_tokens,
    video_tubelets,
)
from mmtrain.models.polyvit import released_nets

torch.set_num_threads(1)

SIZES = {"model_dim": 8, "vocab_size": 20}
HEAD = {**SIZES, "dims": 2}


def lengths(inputs):
    return torch.full((inputs.shape[0],), inputs.shape[1])


def encode(net, inputs):
    with torch.no_grad():
        return net(inputs, lengths(inputs))


def clip_net(**settings):
    torch.manual_seed(0)
    config = video_tubelets.Config(
        num_frames=4, height=8, width=12, channels=1, patch=(2, 4, 4), **settings
    )
    return video_tubelets.Input(config, **SIZES)


@pytest.mark.parametrize(
    ("module", "shape", "grid", "positions"),
    [
        (image_patches, (384, 384, 3), (24, 24), 577),
        (video_tubelets, (32, 224, 224, 3), (8 * 14, 14), 1569),
        (audio_patches, (800, 128), (50, 8), 401),
    ],
)
def test_positions_of_the_released_sizes(module, shape, grid, positions):
    config = released_nets()[module.__name__.rpartition(".")[2]]
    encoded = encode(module.Input(config, **SIZES), torch.zeros(1, *shape))
    assert encoded.values_BSD.shape == (1, positions, 8)
    assert encoded.grid == grid
    assert encoded.mask_BS.all()
    assert encoded.padding == "none"


def test_pixels_from_0_to_255_become_minus_1_to_1_whatever_their_type():
    torch.manual_seed(0)
    net = image_patches.Input(
        image_patches.Config(height=4, width=4, channels=1, patch=(2, 2)), **SIZES
    )
    pixels = torch.tensor([0, 255, 51, 102]).repeat(4).reshape(1, 4, 4, 1)
    scaled = torch.tensor([-1.0, 1.0, -0.6, -0.2]).repeat(4).reshape(1, 4, 4, 1)
    expected = net.tokens(net.embed(scaled))
    for dtype in (torch.uint8, torch.int64, torch.float32):
        assert_close(encode(net, pixels.to(dtype)).values_BSD, expected)


def test_a_clip_is_one_sequence_whose_first_tubelets_are_the_first_frames():
    net = clip_net()
    clip = torch.randint(0, 256, (2, 4, 8, 12, 1), dtype=torch.uint8)
    encoded = encode(net, clip)
    assert encoded.values_BSD.shape == (2, 1 + 2 * 2 * 3, 8)
    assert (encoded.grid, encoded.frames) == ((4, 3), 1)
    changed = clip.clone()
    changed[:, 2:] = 0
    again = encode(net, changed).values_BSD
    assert torch.equal(again[:, :7], encoded.values_BSD[:, :7])
    assert (again[:, 7:] != encoded.values_BSD[:, 7:]).any(-1).all()


def test_frame_by_frame_a_clip_is_a_picture_for_each_moment():
    net = clip_net(sequence="frame")
    clip = torch.randint(0, 256, (2, 4, 8, 12, 1), dtype=torch.uint8)
    encoded = encode(net, clip)
    assert encoded.values_BSD.shape == (2 * 2, 1 + 2 * 3, 8)
    assert encoded.mask_BS.shape == (4, 7)
    assert (encoded.grid, encoded.frames) == ((2, 3), 2)
    still = clip.clone()
    still[:, 2:] = still[:, :2]
    frames = encode(net, still).values_BSD
    assert torch.equal(frames[0], frames[1])
    assert torch.equal(frames[0], encoded.values_BSD[0])


def test_copies_of_a_spectrogram_count_as_the_sum_of_the_kernels_channels():
    torch.manual_seed(0)
    config = audio_patches.Config(num_frames=8, num_bins=4, patch=(4, 4))
    net, frames = audio_patches.Input(config, **SIZES), torch.randn(2, 8, 4)
    slow = torch.nn.functional.conv2d(
        frames[:, None], net.embed.weight.sum(1, keepdim=True), stride=4
    )
    expected = net.tokens(slow.flatten(2).transpose(1, 2))
    assert_close(encode(net, frames).values_BSD, expected, atol=1e-5, rtol=1e-5)


def test_a_sounds_net_of_an_older_bundle_is_read_where_it_changed_nothing():
    older = {"num_frames": 8, "mean": 0.0, "deviation": 1.0}
    assert audio_patches.Config.model_validate(older) == audio_patches.Config(num_frames=8)
    with pytest.raises(ValueError, match="mean"):
        audio_patches.Config.model_validate(older | {"mean": 1.102})


def test_a_text_has_a_class_token_before_it_and_padding_behind_it():
    torch.manual_seed(0)
    net = text_tokens.Input(text_tokens.Config(max_tokens=5), **SIZES)
    with torch.no_grad():
        encoded = net(torch.tensor([[7, 1, 0], [9, 4, 1]]), torch.tensor([2, 3]))
    assert encoded.mask_BS.tolist() == [[True, True, True, False], [True] * 4]
    assert encoded.padding == "masked"
    expected = net.table(torch.tensor(9)) + net.tokens.positions[1]
    assert_close(encoded.values_BSD[1, 1], expected)


def test_inputs_of_another_size_are_refused_with_both_sizes():
    net = clip_net()
    with pytest.raises(
        InputSizeError, match="takes inputs of 4 x 8 x 12 x 1 and was given 4 x 8 x 8"
    ):
        encode(net, torch.zeros(1, 4, 8, 8, 1))
    with pytest.raises(InputSizeError, match="video_tubelets"):
        encode(net, torch.zeros(1, 3, 8, 12, 1))
    with pytest.raises(InputSizeError, match=r"a text of 6 tokens is longer than .*max_tokens=5"):
        encode(
            text_tokens.Input(text_tokens.Config(max_tokens=5), **SIZES),
            torch.ones(1, 6, dtype=torch.long),
        )


def test_a_clip_shorter_than_a_tubelet_is_refused_when_the_net_is_built():
    config = video_tubelets.Config(num_frames=3, height=16, width=16, channels=3)
    with pytest.raises(InputSizeError, match="3 frames are fewer than the 4 of a patch"):
        video_tubelets.Input(config, **SIZES)


def encoded_of(values_BSD, *, mask_BS=None, grid=None, patch=None):
    if mask_BS is None:
        mask_BS = torch.ones(values_BSD.shape[:2], dtype=torch.bool)
    return Encoded(values_BSD, mask_BS, grid, patch=patch)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [("class_token", [9, 9]), ("mean", [2, -3]), ("max", [3, -2]), ("sum", [4, -6])],
)
def test_pools_of_real_positions(pool, expected):
    values_BSD = torch.tensor([[[9.0, 9.0], [1.0, -4.0], [3.0, -2.0], [50.0, 50.0]]])
    mask_BS = torch.tensor([[True, True, True, False]])
    pooled = linear.pool(encoded_of(values_BSD, mask_BS=mask_BS), pool)
    assert_close(pooled, torch.tensor([expected], dtype=torch.float32))


def test_a_linear_head_starts_at_zero_and_may_have_hidden_layers():
    zeros = linear.Output(linear.Config(hidden_dims=(6, 5)), **HEAD, num_outputs=3)
    values = encoded_of(torch.randn(2, 4, 8))
    assert torch.equal(zeros(values), torch.zeros(2, 3))
    assert [layer.weight.shape for layer in zeros.hidden[::2]] == [(6, 8), (5, 6)]
    drawn = linear.Output(linear.Config(init="lecun_normal"), **HEAD, num_outputs=3)
    assert_close(drawn(values), values.values_BSD[:, 0] @ drawn.project.weight.T)
    assert drawn.project.weight.abs().min() > 0


def test_scores_of_elements_lie_where_their_pixels_are():
    config = elements.Config(patch=(2, 3), init="lecun_normal")
    head = elements.Output(config, **HEAD, num_outputs=4)
    values_BSD = torch.randn(2, 1 + 3 * 2, 8)
    logits = head(encoded_of(values_BSD, grid=(3, 2), patch=(2, 3)))
    assert logits.shape == (2, 6, 6, 4)
    for y, x in ((0, 0), (1, 2), (2, 4), (5, 5)):
        patch = 1 + (y // 2) * 2 + x // 3
        place = (y % 2) * 3 + x % 3
        rows = slice(4 * place, 4 * place + 4)
        slow = values_BSD[:, patch] @ head.project.weight[rows].T + head.project.bias[rows]
        assert_close(logits[:, y, x], slow)


def test_each_patch_may_have_its_scores_once():
    head = elements.Output(elements.Config(scores="patch", patch=(4, 4)), **HEAD, num_outputs=5)
    assert head(encoded_of(torch.randn(2, 7, 8), grid=(2, 3), patch=(4, 4))).shape == (2, 2, 3, 5)


def test_a_head_of_elements_for_other_patches_is_refused():
    head = elements.Output(elements.Config(patch=(16, 16)), **HEAD, num_outputs=5)
    with pytest.raises(InputSizeError, match=r"\(16, 16\), the input net's patches are \(8, 8\)"):
        head(encoded_of(torch.randn(2, 7, 8), grid=(2, 3), patch=(8, 8)))
