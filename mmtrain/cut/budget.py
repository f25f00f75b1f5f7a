"""Budgets: the threshold at which a cut model costs no more than a share of the whole.

A higher threshold keeps fewer units, so operations fall as it rises, and bisection finds the
lowest one that will do. It never falls below the threshold that the masks were trained with: the
units below that one took no part in what the subset learned.
"""

from bisect import bisect_left
from collections.abc import Sequence

from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.flops import count
from mmtrain.cut.pruner import Pruner
from mmtrain.cut.subset import Subset
from pipelines.errors import MMTrainError


class BudgetError(MMTrainError):
    """A budget that is no share, or that no cut reaches."""


def threshold_for(
    pruner: Pruner, subset: Subset, *, budget: float, inputs: Sequence[TaskInputs]
) -> float:
    """The lowest threshold, from the trained one on, that meets a budget.

    Args:
        pruner: of the whole model.
        subset: what is cut.
        budget: share of the whole model's operations on these inputs, above 0 to 1.
        inputs: of the subset's tasks.

    Raises:
        BudgetError: it is no share, or one unit of each group alone costs more; names the
            smallest that can be reached.
    """
    if not 0 < budget <= 1:
        raise BudgetError(f"budget {budget:g} is no share of operations; give one above 0 up to 1")
    whole = count(pruner.model, inputs).flops

    def share(threshold: float) -> float:
        return count(pruner.cut(subset, threshold=threshold), inputs).flops / whole

    trained = pruner.masks(subset)
    utilities = trained.utility.unique().tolist()  # ascending
    steps = [trained.threshold, *(value for value in utilities if value > trained.threshold)]
    smallest = share(steps[-1])
    if smallest > budget:
        raise BudgetError(
            f"budget {budget:g} cannot be reached for {subset}: one unit of each group alone "
            f"takes {smallest:.4f} of the whole model's operations; give at least {smallest:.4f}"
        )
    return steps[bisect_left(steps, True, key=lambda step: share(step) <= budget)]
