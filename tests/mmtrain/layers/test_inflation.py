"""Patch kernels and positions between pictures, clips and other sizes."""

import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from mmtrain.layers.inflation import fit_kernel, fit_positions, flatten_kernel, inflate_kernel

generator = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def response(kernel_DCTYX: Tensor, patch_CTYX: Tensor) -> Tensor:
    return (kernel_DCTYX * patch_CTYX).sum((1, 2, 3, 4))


def test_what_fits_is_handed_back_as_it_is():
    kernel, positions = random(5, 3, 4, 8, 8), random(2, 3, 4, 5)
    assert fit_kernel(kernel, shape=(3, 4, 8, 8)) is kernel
    assert torch.equal(fit_positions(positions, shape=(2, 3, 4)), positions)


def test_central_frame_kernel_responds_as_the_pictures_to_frame_two_of_four():
    picture, clip = random(5, 3, 1, 8, 8), random(3, 4, 8, 8)
    kernel = inflate_kernel(picture, 4, how="central_frame")
    assert torch.equal(kernel[:, :, 2], picture[:, :, 0])
    assert kernel[:, :, [0, 1, 3]].abs().max() == 0
    assert_close(response(kernel, clip), response(picture, clip[:, 2:3]))


def test_average_kernel_responds_as_the_pictures_to_a_clip_that_stands_still():
    picture, frame = random(5, 3, 1, 8, 8), random(3, 1, 8, 8)
    kernel = inflate_kernel(picture, 4, how="average")
    assert_close(response(kernel, frame.expand(3, 4, 8, 8)), response(picture, frame))
    assert_close(kernel[:, :, 1], picture[:, :, 0] / 4)


@pytest.mark.parametrize("how", ["central_frame", "average"])
def test_a_pictures_kernel_comes_back_from_a_clips(how):
    picture = random(5, 3, 1, 8, 8)
    assert_close(flatten_kernel(inflate_kernel(picture, 4, how=how)), picture)


def test_kernel_for_larger_patches_responds_alike_to_the_enlarged_patch():
    kernel, patch = random(5, 3, 1, 4, 6), random(3, 1, 4, 6)
    larger = fit_kernel(kernel, shape=(3, 1, 8, 9))
    enlarged = functional.interpolate(patch[:, 0][None], size=(8, 9), mode="bilinear")[0]
    assert_close(response(larger, enlarged[:, None]), response(kernel, patch), atol=1e-4, rtol=0)


def test_grey_kernel_is_the_sum_of_the_colours_and_colours_share_a_grey_one():
    colour, grey = random(5, 3, 1, 2, 2), random(5, 1, 1, 2, 2)
    patch = random(1, 1, 2, 2)
    same_in_all = patch.expand(3, -1, -1, -1)
    assert_close(
        response(fit_kernel(colour, shape=(1, 1, 2, 2)), patch), response(colour, same_in_all)
    )
    assert_close(response(fit_kernel(grey, shape=(3, 1, 2, 2)), same_in_all), response(grey, patch))
    with pytest.raises(ValueError, match="3 channels cannot become 4"):
        fit_kernel(colour, shape=(4, 1, 2, 2))


def test_positions_of_other_grids_are_interpolated():
    row = torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1)
    wider = fit_positions(row, shape=(1, 1, 4))
    assert_close(wider.flatten(), torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]))  # corners on corners
    grid = random(1, 3, 4, 2)
    zoomed = ndimage.zoom(grid[0].numpy(), (2, 1.5, 1), order=1)  # as the code of ViT and PolyViT
    assert_close(fit_positions(grid, shape=(1, 6, 6))[0], torch.from_numpy(zoomed))


def test_positions_are_tiled_over_time_and_averaged_over_frames():
    picture, clip = random(1, 2, 3, 4), random(5, 2, 3, 4)
    assert torch.equal(fit_positions(picture, shape=(8, 2, 3)), picture.expand(8, 2, 3, 4))
    assert_close(fit_positions(clip, shape=(1, 2, 3)), clip.mean(0, keepdim=True))


def test_shapes_are_known_without_weights():
    meta = torch.empty((5, 3, 1, 4, 4), device="meta")
    assert fit_kernel(meta, shape=(1, 2, 8, 8)).shape == (5, 1, 2, 8, 8)
    grid = torch.empty((1, 2, 3, 4), device="meta")
    assert fit_positions(grid, shape=(2, 5, 5)).shape == (2, 5, 5, 4)
