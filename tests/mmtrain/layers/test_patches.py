import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mmtrain.layers.patches import InputSizeError, PatchEmbedding, Tokens, cut, grid_of

torch.set_num_threads(1)


def test_patches_are_cut_row_by_row_and_each_channel_by_channel():
    picture = torch.arange(2 * 4 * 2).reshape(1, 2, 4, 2)  # 2 rows, 4 columns, 2 channels
    assert cut(picture, (2, 2)).tolist() == [
        [
            [0, 2, 8, 10, 1, 3, 9, 11],
            [4, 6, 12, 14, 5, 7, 13, 15],
        ]
    ]


def test_tubelets_are_ordered_by_time_then_row_then_column():
    places = torch.arange(4 * 4 * 6).reshape(1, 4, 4, 6, 1)
    first = cut(places, (2, 2, 3))[0, :, 0]
    assert first.tolist() == [t * 24 + y * 6 + x for t in (0, 2) for y in (0, 2) for x in (0, 3)]


@pytest.mark.parametrize(
    ("size", "patch"), [((8, 12), (4, 3)), ((6, 8, 4), (2, 4, 4)), ((9,), (3,))]
)
def test_patch_embedding_equals_a_convolution_with_the_stride_of_its_kernel(size, patch):
    torch.manual_seed(0)
    embed = PatchEmbedding(3, 10, patch=patch)
    torch.nn.init.normal_(embed.bias)
    grid = torch.randn(2, *size, 3)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(size)]
    slow = convolve(grid.movedim(-1, 1), embed.weight, embed.bias, stride=patch)
    assert_close(embed(grid), slow.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_patch_embedding_equals_unfold_and_a_matrix_product():
    torch.manual_seed(0)
    embed = PatchEmbedding(3, 10, patch=(4, 4))
    picture = torch.randn(2, 8, 12, 3)
    columns_BWS = F.unfold(picture.movedim(-1, 1), (4, 4), stride=4)
    slow = columns_BWS.transpose(1, 2) @ embed.weight.flatten(1).T
    assert_close(embed(picture), slow, atol=1e-5, rtol=1e-5)


def test_a_patch_embedding_keeps_the_variance_of_its_inputs():
    torch.manual_seed(0)
    weight = PatchEmbedding(3, 768, patch=(16, 16)).weight
    assert_close(weight.var() * 768, torch.tensor(1.0), atol=0.01, rtol=0)


def test_the_class_token_starts_at_zero_in_front_with_a_position_of_its_own():
    tokens = Tokens(5, 4, drop_prob=0.0)
    assert tokens.positions.shape == (6, 4)
    out = tokens(torch.zeros(2, 3, 4))
    assert torch.equal(out, tokens.positions[:4].expand(2, 4, 4))
    tokens.class_token.data.fill_(1.0)
    assert torch.equal(tokens(torch.zeros(2, 3, 4))[:, 0] - out[:, 0], torch.ones(2, 4))


def test_sizes_that_make_no_patches_are_refused_with_the_nearest_that_do():
    assert grid_of((32, 224), patch=(4, 16), axes=("frames", "rows")) == (8, 14)
    with pytest.raises(InputSizeError, match="3 frames are fewer than the 4 of a patch"):
        grid_of((3,), patch=(4,), axes=("frames",))
    with pytest.raises(InputSizeError, match=r"30 rows are no multiple of the 16 .* use 16 or 32"):
        grid_of((30,), patch=(16,), axes=("rows",))
