"""Dynamic batching: requests that one pass of a model can answer are answered together.

Jobs wait in a queue for each key (network, tasks, beam width). One thread answers, a batch at a
time; while it works, queues fill, so that batches grow with the load by themselves. When it is
free, a queue is answered at once if it holds as many jobs as were there together the last time,
or `max_batch`, and else when its oldest job has waited `wait_s`: a lone client never waits, and a
crowd is answered together.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
I = TypeVar("I")  # noqa: E741  # an item that waits
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Queue:
    """What the policy knows of a queue.

    Args:
        count: jobs that wait, at least one.
        waited_s: how long the oldest has.
        expected: jobs that were there together when the queue was last answered.
    """

    count: int
    waited_s: float
    expected: int


@dataclass(frozen=True, slots=True)
class NextBatch(Generic[K]):
    """What to do next: answer the queue of a key, or wait.

    Args:
        key: queue to answer now; None: wait.
        wait_s: seconds after which to ask again; None: until a job comes.
    """

    key: K | None = None
    wait_s: float | None = None


def batch_policy(queues: Mapping[K, Queue], *, max_batch: int, wait_s: float) -> NextBatch[K]:
    """Which queue is answered now; of several that are ready, the one with the oldest job."""
    ready = {
        key: queue
        for key, queue in queues.items()
        if queue.count >= min(max_batch, queue.expected) or queue.waited_s >= wait_s
    }
    if ready:
        return NextBatch(key=max(ready, key=lambda key: ready[key].waited_s))
    left_s = (wait_s - queue.waited_s for queue in queues.values())
    return NextBatch(wait_s=min(left_s, default=None))


@dataclass(slots=True, eq=False)
class _Job(Generic[I, R]):
    item: I
    answered: "asyncio.Future[R]"
    came_s: float = field(default_factory=time.monotonic)


class Batcher(Generic[K, I, R]):
    """Answers items of one key together, in a thread of its own.

    Args:
        answer: key and items to results in the items' order; called in the thread.
        max_batch: items of a call at most.
        wait_s: longest wait for others.
        on_batch: called with the key and size of each batch.
    """

    def __init__(
        self,
        answer: Callable[[K, Sequence[I]], Sequence[R]],
        *,
        max_batch: int,
        wait_s: float,
        on_batch: Callable[[K, int], None] = lambda key, size: None,
    ) -> None:
        self._answer, self._max_batch, self._wait_s = answer, max_batch, wait_s
        self._on_batch = on_batch
        self._queues: dict[K, deque[_Job[I, R]]] = {}
        self._expected: dict[K, int] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._came = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Jobs that wait."""
        return sum(map(len, self._queues.values()))

    async def submit(self, key: K, item: I) -> R:
        """The item's result. A caller that is cancelled leaves the queue.

        Raises:
            Exception: what `answer` raised for this item alone.
        """
        if self._loop is None:
            self._loop = asyncio.create_task(self._run())
        job: _Job[I, R] = _Job(item, asyncio.get_running_loop().create_future())
        queue = self._queues.setdefault(key, deque())
        queue.append(job)
        self._came.set()
        try:
            return await job.answered
        finally:
            if job in queue:
                queue.remove(job)

    async def close(self) -> None:
        """Stops answering; the batch being answered ends first."""
        if self._loop is not None:
            self._loop.cancel()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def _run(self) -> None:
        while True:
            self._came.clear()
            chosen = self._choose()
            if chosen.key is None:
                await self._wait(chosen.wait_s)
            else:
                await self._answer_queue(chosen.key)

    async def _answer_queue(self, key: K) -> None:
        queue = self._queues[key]
        jobs = [queue.popleft() for _ in range(min(len(queue), self._max_batch))]
        self._on_batch(key, len(jobs))
        await self._answer_jobs(key, jobs)
        self._remember(key, len(jobs) + len(queue))

    def _choose(self) -> NextBatch[K]:
        now_s = time.monotonic()
        queues = {
            key: Queue(len(jobs), now_s - jobs[0].came_s, self._expected.get(key, 1))
            for key, jobs in self._queues.items()
            if jobs
        }
        return batch_policy(queues, max_batch=self._max_batch, wait_s=self._wait_s)

    async def _wait(self, longest_s: float | None) -> None:
        try:
            await asyncio.wait_for(self._came.wait(), longest_s)
        except TimeoutError:
            return

    def _remember(self, key: K, together: int) -> None:
        """Keeps what is there to know of a key, and nothing of keys that nobody asks for."""
        self._expected.pop(key, None)
        if together > 1:
            self._expected[key] = together
        elif not self._queues.get(key):
            self._queues.pop(key, None)

    async def _answer_jobs(self, key: K, jobs: Sequence[_Job[I, R]]) -> None:
        """Answers a batch; if that fails, each job alone, so that one cannot fail the others."""
        waiting = [job for job in jobs if not job.answered.done()]
        if not waiting:
            return
        loop = asyncio.get_running_loop()
        items = [job.item for job in waiting]
        try:
            results = await loop.run_in_executor(self._thread, self._answer, key, items)
        except Exception as error:  # whatever it is, it is this job's answer
            if len(waiting) > 1:
                logger.warning("a batch of %d failed (%r); each alone", len(waiting), error)
                for job in waiting:
                    await self._answer_jobs(key, [job])
            elif not waiting[0].answered.done():
                waiting[0].answered.set_exception(error)
            return
        for job, result in zip(waiting, results, strict=True):
            if not job.answered.done():
                job.answered.set_result(result)
