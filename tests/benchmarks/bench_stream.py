"""The stream against a torch DataLoader of 2 workers: the same shards, rows and collating.

Prints a JSON line for each comparison: batches/s over the eight tasks alternating, seconds to a
worker's first batch beside its bound, peak memory over 1,000 shards beside that over 10.
"""

import argparse
import gc
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mmtrain.recipe import load_recipe
from pipelines.batch import Batch
from pipelines.build import build, start_ray
from pipelines.modalities.text import TextFeature
from pipelines.plan import Plan
from pipelines.schedule import ScheduleConfig
from pipelines.shards import (
    COMPLETED,
    MANIFEST,
    Example,
    Manifest,
    ShardReader,
    contents_digest,
    open_manifest,
    open_task,
)
from pipelines.stream import StreamConfig, assemble, read_batches, stream
from pipelines.task import Source, Task
from pipelines.writer import ShardWriter

NUM_STEPS = 2_400
NUM_PROCESSES = 2  # readers of the stream, workers of the DataLoader
REPEATS = 5
FIRST_BATCH_BOUND_S = 10.0  # of a worker, from its start


class PlanDataset(Dataset):
    """The batches of a plan by step; as arrays, which a worker hands over faster than tensors."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.reader = plan, None

    def __len__(self) -> int:
        return self.plan.num_steps

    def __getitem__(self, step: int) -> Batch:
        if self.reader is None:  # one for each worker process
            self.reader = ShardReader(self.plan.manifests.values())
        (planned,) = self.plan.batches(step)
        return assemble(planned, plan=self.plan, reader=self.reader)


def ours(plan: Plan) -> Iterator[Batch]:
    return stream(plan, config=StreamConfig(num_readers=NUM_PROCESSES))


def peer(plan: Plan) -> Iterator[Batch]:
    return iter(
        DataLoader(
            PlanDataset(plan),
            batch_size=None,
            num_workers=NUM_PROCESSES,
            multiprocessing_context="forkserver",  # a fork of a process with Ray's threads may hang
        )
    )


def measure(batches: Iterator[Batch]) -> tuple[float, float, int]:
    """Seconds to the first batch, batches/s after it, and a checksum."""
    began = time.perf_counter()
    total = checksum(next(batches))
    first_s = time.perf_counter() - began
    count, began = 0, time.perf_counter()
    for batch in batches:
        count, total = count + 1, total + checksum(batch)
    return first_s, count / (time.perf_counter() - began), total


def checksum(batch: Batch) -> int:
    """Touches the tensors as a train loop would."""
    inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
    return int(targets.sum()) + int(batch.example_ids.sum()) + len(inputs)


def compare_rates(data_dir: Path) -> None:
    """Interleaved repeats; both give the same examples."""
    tasks = load_recipe("quickstart").tasks
    build(list(tasks.values()), data_dir=data_dir)
    manifests = {n: open_task(t, split="train", data_dir=data_dir) for n, t in tasks.items()}
    plan = Plan(manifests, ScheduleConfig(name="alternating"), num_steps=NUM_STEPS)
    start_ray()
    found: dict[str, list[tuple[float, float, int]]] = {"ours": [], "peer": []}
    for _ in range(REPEATS):
        for name, batches in (("ours", ours), ("peer", peer)):
            found[name].append(measure(batches(plan)))
            gc.collect()
    assert len({total for runs in found.values() for _, _, total in runs}) == 1
    rates = {who: statistics.median(rate for _, rate, _ in runs) for who, runs in found.items()}
    emit("stream_rate", rates["ours"], rates["peer"], unit="batches/s", better="higher")
    first_s = statistics.median(first for first, _, _ in found["ours"])
    emit("stream_first_batch_to_bound", first_s, FIRST_BATCH_BOUND_S, unit="s", better="lower")


def emit(name: str, ours: float, peer: float, *, unit: str, better: str) -> None:
    line = {"name": name, "ours": round(ours, 3), "peer": round(peer, 3)}
    line |= {"ratio": round(ours / peer, 3), "unit": unit, "better": better}
    print(json.dumps(line), flush=True)


def compare_memory() -> None:
    """Peak memory of a process that reads as many batches of 1,000 shards as of 10."""
    with tempfile.TemporaryDirectory() as folder:
        peaks: dict[Path, list[float]] = {Path(folder, name): [] for name in ("10", "1000")}
        for split in peaks:
            write_shards(split, num_shards=int(split.name))
        for _ in range(REPEATS):
            for split, found in peaks.items():
                command = [sys.executable, __file__, "--peak", str(split)]
                found.append(float(subprocess.run(command, check=True, capture_output=True).stdout))
    few, many = (statistics.median(found) for found in peaks.values())
    emit("stream_memory_1000_shards_to_10", many, few, unit="MB", better="lower")


def peak_mb(folder: Path) -> float:
    """Reads 3,000 batches of a split, shuffled; the process's peak."""
    manifests = {"copy": open_manifest(folder)}
    plan = Plan(manifests, ScheduleConfig(name="alternating"), num_steps=3_000)
    for _ in read_batches(plan, cache_bytes=2**20):
        pass
    # ru_maxrss would start from the parent's peak: it survives exec
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def write_shards(folder: Path, *, num_shards: int) -> None:
    """A split of shards of 512 rows, all alike but for their name."""
    task = Task(
        name="copy",
        source=Source(uri="raw/copy", format="tsv"),
        inputs=TextFeature(),
        targets=TextFeature(),
        metrics=("exact",),
        baseline="copy_source",
        batch_size=32,
    )
    row = np.arange(64, dtype=np.int32)
    writer = ShardWriter(folder / "shard-00000.parquet", bounds=(), row_group_rows=128)
    for i in range(512):
        writer.write(Example(row + i, row), origin=str(i))
    first = writer.close()
    assert first is not None
    shards = [
        first.model_copy(update={"file": f"shard-{i:05d}.parquet"}) for i in range(num_shards)
    ]
    for shard in shards[1:]:
        shutil.copy(folder / first.file, folder / shard.file)
    manifest = Manifest(
        task=task,
        split="train",
        num_examples=512 * num_shards,
        bucket_bounds=(64,),
        shards=tuple(shards),
        digest=contents_digest(shards),
        fingerprint="",
        vocabulary_digest=None,
        quarantined={},
        stats={},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    (folder / COMPLETED).write_text(manifest.digest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=None, help="built or to be built here")
    parser.add_argument("--peak", type=Path, help="only read this split; print the peak, MB")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(peak_mb(arguments.peak))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare_rates(arguments.data or Path(folder))
    compare_memory()


if __name__ == "__main__":
    main()
