"""Settings of all tests, and how processes share them (`make test` runs two).

Integration tests share one local Ray cluster (`tests/integration`).
"""

import os

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Toy sizes: threads would only wait for one another. Set before torch is imported, and inherited
# by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "300"  # a busy machine is not a failure


class ClusterApart(LoadScopeScheduling):
    """All that needs the Ray cluster in one process, in order; other files wherever is room."""

    def _split_scope(self, nodeid: str) -> str:
        return "cluster" if "integration/" in nodeid else nodeid.split("::", 1)[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ClusterApart:
    """xdist asks for it once, in the process that hands out the tests."""
    return ClusterApart(config, log)
