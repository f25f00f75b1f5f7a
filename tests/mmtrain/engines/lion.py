"""A user's own optimizer, in a file of his: Lion, Chen et al., arXiv:2302.06675, Algorithm 2."""

from functools import partial

from mmtrain.engines.optim import GroupStep, UpdateRule


@partial(UpdateRule, states=("average",), decay="betas", undoes_scale=True)
def lion(step: GroupStep) -> None:
    first, second = step.betas
    states = step.states["average"]
    for weight, gradient, average in zip(step.weights, step.gradients, states, strict=True):
        direction = average.lerp(gradient, 1 - first).sign_()
        weight.mul_(1 - step.learning_rate * step.weight_decay)
        weight.add_(direction, alpha=-step.learning_rate)
        average.lerp_(gradient, 1 - second)


@partial(UpdateRule, states=(), elementwise=False)
def normed(step: GroupStep) -> None:
    """Every weight moves by one length, whatever its gradient's."""
    for weight, gradient in zip(step.weights, step.gradients, strict=True):
        weight.add_(gradient / gradient.norm().clamp(min=1e-12), alpha=-step.learning_rate)
