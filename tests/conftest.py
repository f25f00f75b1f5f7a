"""Settings of all tests, and how processes share them (`make test` runs two).

Integration tests share one local Ray cluster (`tests/integration`).
"""

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.sharing import ClusterApart

# Toy sizes: threads would only wait for one another. Set before torch is imported, and inherited
# by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "300"  # a busy machine is not a failure


@pytest.hookimpl(optionalhook=True)  # without xdist there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "ClusterApart":
    """xdist asks for it once, in the process that hands out the tests."""
    from tests.sharing import ClusterApart  # imports xdist, which need not be there

    return ClusterApart(config, log)
