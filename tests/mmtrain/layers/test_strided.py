import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from mmtrain.layers.grid import GridConv, GridConvStep
from mmtrain.layers.strided import GridFilters
from mmtrain.planning.footprint import StepTracer, planned_specs
from mmtrain.planning.longest import LongestBatch, longest_batches
from mmtrain.recipe import load_recipe, recipe_functions

torch.set_num_threads(1)


class StridedPoints(TorchFunctionMode):
    """Convolutions that are called, whoever calls them, and those of a kernel of 1 with a stride.

    All ways to a convolution have an input, a weight, a bias and a stride first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_calls, self.found = 0, []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "conv" in getattr(func, "__name__", str(func)):
            self.num_calls += 1
            weight = kwargs["weight"] if "weight" in kwargs else args[1]
            stride = kwargs.get("stride", args[3] if len(args) > 3 else 1)
            steps = (stride,) if isinstance(stride, int) else tuple(stride)
            if weight.shape[2:].numel() == 1 and max(steps) > 1:
                self.found.append((func, weight.shape, steps))
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    "call",
    [
        lambda: nn.Conv1d(2, 3, 1, stride=2)(torch.ones(1, 2, 4)),
        lambda: nn.Conv2d(2, 2, 1, stride=(1, 2), groups=2)(torch.ones(1, 2, 4, 4)),
        lambda: F.conv3d(torch.ones(1, 2, 4, 4, 4), torch.ones(3, 2, 1, 1, 1), None, 2),
        lambda: F.conv2d(torch.ones(1, 2, 4, 4), weight=torch.ones(3, 2, 1, 1), stride=2),
        lambda: torch.conv1d(torch.ones(1, 2, 4), torch.ones(3, 2, 1), stride=2),
        lambda: torch.convolution(
            torch.ones(1, 2, 4), torch.ones(3, 2, 1), None, [2], [0], [1], False, [0], 1
        ),
    ],
)
def test_a_strided_convolution_of_kernel_1_is_found_however_it_is_called(call):
    with StridedPoints() as points:
        call()
    assert len(points.found) == 1


@pytest.mark.parametrize("name", sorted(recipe_functions()))
def test_no_model_of_a_recipe_calls_a_strided_convolution_of_kernel_1(name):
    recipe = load_recipe(name)
    specs = planned_specs(recipe)
    tracer = StepTracer(recipe)
    task_of_nets = {(spec.input_net, spec.output_net): recipe.tasks[spec.name] for spec in specs}
    with StridedPoints() as points:
        for task in task_of_nets.values():
            batch = longest_batches(task, None)[0]
            small = LongestBatch(task.name, recipe.num_workers, batch.inputs, batch.targets)
            tracer.trace([small], world_size=recipe.num_workers, keeps_gradients=False)
    assert points.found == []
    # PolyViT's patches are matrix products, and texts have taps along one axis: none of them calls
    has_grids = any(task.inputs.modality in ("image", "audio") for task in recipe.tasks.values())
    if has_grids and recipe.model.family != "polyvit":
        assert points.num_calls > 0


def test_values_and_gradients_are_those_of_every_second_row_and_third_column():
    torch.manual_seed(0)
    filters = GridFilters(3, 5, (1, 1), stride=(2, 3), padding=(0, 0), bias=True)
    x_BCYX = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    kept_BCYX = torch.stack([x_BCYX[:, :, row, [0, 3, 6]] for row in (0, 2, 4)], dim=2)
    slow = torch.einsum("bcyx,dc->bdyx", kept_BCYX, filters.weight[:, :, 0, 0])
    slow = slow + filters.bias[:, None, None]
    assert_close(filters(x_BCYX), slow)
    (expected,) = torch.autograd.grad(slow.square().sum(), filters.weight)
    (found,) = torch.autograd.grad(filters(x_BCYX).square().sum(), filters.weight)
    assert_close(found, expected)


@pytest.mark.parametrize(("kernel", "stride"), [((1, 1), (2, 1)), ((3, 1), (2, 2))])
def test_names_shapes_and_draws_of_weights_are_those_of_torch_s_convolution(kernel, stride):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 4, kernel, stride, (kernel[0] // 2, 0), groups=2)
    torch.manual_seed(0)
    padding = (kernel[0] // 2, 0)
    filters = GridFilters(4, 4, kernel, stride=stride, padding=padding, groups=2, bias=True)
    assert_close(dict(filters.state_dict()), dict(plain.state_dict()), atol=0, rtol=0)
    x_BCYX = torch.randn(2, 4, 6, 5)
    assert_close(filters(x_BCYX), plain(x_BCYX))


@pytest.mark.parametrize(
    "layer", [functools.partial(GridConv, entry="linear"), GridConvStep], ids=["plain", "separable"]
)
def test_layers_of_an_entry_flow_may_have_a_kernel_of_1_and_a_stride(layer):
    torch.manual_seed(0)
    step = layer(4, 6, kernel=(1, 1), stride=(4, 2))
    x_BYXC = torch.randn(2, 9, 4, 4)
    with StridedPoints() as points:
        out_BYXC = step(x_BYXC, torch.tensor([9, 5]))
    assert points.found == []
    assert out_BYXC.shape == (2, 3, 2, 6)
    out_BYXC.square().sum().backward()
