"""Dynamic batching: who is answered together, when, and what a failure costs the others."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from mmtrain.serving.batch import Batcher, NextBatch, Queue, batch_policy
from tests.waiting import BUSY_S, until


@pytest.mark.parametrize(
    ("queues", "choice"),
    [
        ({}, NextBatch()),
        ({"a": Queue(1, 0.0, expected=1)}, NextBatch(key="a")),  # a lone client never waits
        ({"a": Queue(3, 0.002, expected=8)}, NextBatch(wait_s=0.008)),  # others are on their way
        ({"a": Queue(3, 0.011, expected=8)}, NextBatch(key="a")),  # they did not come
        ({"a": Queue(4, 0.0, expected=9)}, NextBatch(key="a")),  # as many as fit
        (
            {"a": Queue(1, 0.001, expected=1), "b": Queue(1, 0.003, expected=1)},
            NextBatch(key="b"),  # the oldest first
        ),
        (
            {"a": Queue(1, 0.004, expected=8), "b": Queue(1, 0.007, expected=8)},
            NextBatch(wait_s=0.003),
        ),
    ],
)
def test_a_queue_is_answered_when_nobody_else_is_expected_or_has_waited(
    queues: dict[str, Queue], choice: NextBatch[str]
):
    found = batch_policy(queues, max_batch=4, wait_s=0.01)
    assert found.key == choice.key
    assert found.wait_s == pytest.approx(choice.wait_s)


class Doubler:
    """Doubles numbers; remembers its batches; holds the first until it is let go."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.goes_on = threading.Event()

    def __call__(self, key: str, items: Sequence[int]) -> list[int]:
        self.batches.append((key, list(items)))
        self.goes_on.wait(BUSY_S)
        if 13 in items:
            raise ValueError("13")
        return [2 * item for item in items]


async def _crowd(batcher: Batcher[str, int, int], doubler: Doubler, items: Sequence[int]) -> list:
    """One job that is being answered, then all others."""
    first = asyncio.create_task(batcher.submit("a", 0))
    await until(lambda: doubler.batches)
    others = [asyncio.create_task(batcher.submit("a", item)) for item in items]
    await until(lambda: batcher.num_waiting == len(items))
    doubler.goes_on.set()
    results = await asyncio.gather(*others, return_exceptions=True)
    await first
    return results


def _run(max_batch: int, items: Sequence[int]) -> tuple[list, list[list[int]]]:
    async def run() -> list:
        batcher: Batcher[str, int, int] = Batcher(doubler, max_batch=max_batch, wait_s=0.01)
        try:
            return await _crowd(batcher, doubler, items)
        finally:
            await batcher.close()

    doubler = Doubler()
    return asyncio.run(run()), [items for _, items in doubler.batches]


def test_jobs_that_come_while_one_is_answered_are_answered_together_in_their_order():
    assert _run(8, [1, 2, 3]) == ([2, 4, 6], [[0], [1, 2, 3]])


def test_a_batch_holds_no_more_than_its_most():
    results, batches = _run(2, [1, 2, 3])
    assert results == [2, 4, 6]
    assert batches == [[0], [1, 2], [3]]


def test_a_job_that_fails_does_not_fail_the_others():
    results, batches = _run(8, [1, 13, 3])
    assert [results[0], results[2]] == [2, 6]
    assert isinstance(results[1], ValueError)
    assert batches == [[0], [1, 13, 3], [1], [13], [3]]


def test_a_cancelled_job_is_not_answered():
    async def run() -> None:
        batcher: Batcher[str, int, int] = Batcher(doubler, max_batch=8, wait_s=0.01)
        first = asyncio.create_task(batcher.submit("a", 0))
        await until(lambda: doubler.batches)
        gone, stays = (asyncio.create_task(batcher.submit("a", item)) for item in (1, 2))
        await until(lambda: batcher.num_waiting == 2)
        gone.cancel()
        await until(lambda: batcher.num_waiting == 1)
        doubler.goes_on.set()
        assert await stays == 4
        await first
        await batcher.close()

    doubler = Doubler()
    asyncio.run(run())
    assert [items for _, items in doubler.batches] == [[0], [2]]


def test_a_lone_client_never_waits_and_keys_leave_nothing_behind():
    async def run() -> None:
        batcher: Batcher[str, int, int] = Batcher(doubler, max_batch=8, wait_s=10 * BUSY_S)
        for number in range(20, 40):
            assert await batcher.submit(f"key {number}", number) == 2 * number
        await until(lambda: not batcher._queues and not batcher._expected)
        await batcher.close()

    doubler = Doubler()
    doubler.goes_on.set()
    asyncio.run(asyncio.wait_for(run(), BUSY_S))
