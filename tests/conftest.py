"""Settings of all tests. Integration tests share one local Ray cluster (`tests/integration`)."""

import os

# Toy sizes: threads would only wait for one another. Set before torch is imported, and inherited
# by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "300"  # a busy machine is not a failure
