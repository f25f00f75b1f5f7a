import time
from dataclasses import fields

import numpy as np
import pytest

from pipelines import stream as stream_module
from pipelines.batch import Batch
from pipelines.errors import CorpusError, StreamError
from pipelines.plan import Plan
from pipelines.schedule import ScheduleConfig
from pipelines.shards import Manifest
from pipelines.stream import StreamConfig, read_batches, stream
from tests.pipelines.toy_corpus import build_toy
from tests.waiting import BUSY_S

LENGTHS = [1 + (7 * i) % 9 for i in range(60)]

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def manifests(tmp_path) -> dict[str, Manifest]:
    return {
        name: build_toy(tmp_path, name=name, lengths=LENGTHS, **fields)
        for name, fields in {
            "plain": {"batch_size": 6},
            "bucketed": {
                "batch_size": None,
                "batch_tokens": 200,
                "batch_multiple": 6,
                "bucket_bounds": (4, 8, 12),
            },
        }.items()
    }


def plan_of(manifests: dict[str, Manifest], **fields) -> Plan:
    settings = {"schedule": ScheduleConfig(name="uniform"), "num_steps": 40, "seed": 3}
    return Plan(manifests=manifests, **(settings | fields))


def facts(batch) -> tuple:
    values = (getattr(batch, field.name) for field in fields(Batch))
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    return (batch.step, batch.micro, batch.task, [(a.dtype, a.tolist()) for a in arrays])


def test_stream_gives_the_batches_of_the_plain_reading_and_resumes_anywhere(manifests):
    plan = plan_of(manifests, accumulation=2, world_size=3, rank=1)
    config = StreamConfig(steps_per_read=3)
    straight = [facts(batch) for batch in read_batches(plan)]
    assert [facts(batch) for batch in stream(plan, config=config)] == straight
    rest = [facts(b) for b in stream(plan, start_step=17, num_steps=9, config=config)]
    assert rest == [fact for fact in straight if 17 <= fact[0] < 26]
    carried = stream(
        plan_of(manifests, accumulation=2, world_size=3, rank=1),
        start_step=38,
        cursors=plan.cursors(38),
        config=config,
    )
    assert [facts(batch) for batch in carried] == [fact for fact in straight if fact[0] >= 38]


def test_blocks_that_end_inside_a_step_lose_nothing_at_the_seam_of_two_datasets(
    manifests, monkeypatch
):
    monkeypatch.setattr(stream_module, "RANGES", 2)
    plan = plan_of(
        manifests, schedule=ScheduleConfig(name="accumulating"), num_steps=8, accumulation=2
    )
    config = StreamConfig(steps_per_read=2, block_bytes=1)  # two Datasets of 4 steps
    straight = [facts(batch) for batch in read_batches(plan)]
    assert [facts(batch) for batch in stream(plan, config=config)] == straight
    assert len(straight) == 8 * 2 * 2


def test_two_ranks_stream_at_once_and_share_each_global_batch(manifests):
    plans = [plan_of(manifests, world_size=2, rank=rank) for rank in (0, 1)]
    streams = [stream(plan) for plan in plans]
    whole = plan_of(manifests)
    for step, (left, right) in enumerate(zip(*streams, strict=True)):
        ids = np.concatenate([left.example_ids, right.example_ids])
        assert left.task == right.task
        assert ids.tolist() == whole.batches(step)[0].rows.tolist()


def test_error_of_a_reader_reaches_the_train_loop_as_itself(manifests):
    path = manifests["plain"].folder / manifests["plain"].shards[0].file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"shard-00000\.parquet changed since it was built"):
        list(stream(plan_of({"plain": manifests["plain"]})))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_stream_without_a_cpu_says_who_waits_for_what(manifests):
    config = StreamConfig(num_cpus=100, timeout_s=2)
    began = time.monotonic()
    with pytest.raises(StreamError, match=r"rank 0 waited 2 s for step 0 \(tasks \['plain'\]\)"):
        next(stream(plan_of({"plain": manifests["plain"]}), config=config))
    assert time.monotonic() - began < BUSY_S
