import math
import pickle

import pytest

from mmtrain.step.policies import NonFiniteLossError, is_due, is_healthy


@pytest.mark.parametrize(
    ("step", "every", "due"), [(4, 2, True), (5, 2, False), (9, 0, False), (10, 0, True)]
)
def test_something_is_due_at_its_multiples_and_at_the_end(step, every, due):
    assert is_due(step, every=every, last=10) is due


@pytest.mark.parametrize(("norm", "healthy"), [(0.0, True), (math.inf, False), (math.nan, False)])
def test_a_step_is_healthy_when_its_gradient_is_finite(norm, healthy):
    assert is_healthy(norm) is healthy


def test_lost_loss_names_task_step_and_examples_and_survives_pickling():
    error = NonFiniteLossError("parsing", 7, [3, 5], math.nan)
    for copy in (error, pickle.loads(pickle.dumps(error))):
        assert "step 7, task parsing" in str(copy)
        assert "examples 3, 5" in str(copy)
