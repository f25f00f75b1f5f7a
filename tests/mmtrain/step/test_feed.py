from dataclasses import replace

import pytest

from mmtrain.checkpoint import Progress
from mmtrain.engines.ranks import Ranks
from mmtrain.recipe import load_recipe
from mmtrain.run.components import build_feed
from mmtrain.step import feed as feed_module
from mmtrain.step.feed import Feed
from pipelines.errors import StreamError
from pipelines.stream import read_batches
from tests.pipelines.toy_corpus import build_toy

LENGTHS = [1 + (7 * i) % 9 for i in range(37)]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return {name: build_toy(folder, name=name, lengths=LENGTHS) for name in ("a", "b")}


@pytest.fixture
def feed(manifests) -> Feed:
    recipe = load_recipe("debug", ["schedule.name=accumulating", "engine.accumulation=2"])
    ranks = replace(Ranks.current(use_gpu=False), rank=1, world_size=3)
    return build_feed(recipe.with_(num_steps=4), manifests, ranks=ranks, start=Progress(step=0))


def streamed(monkeypatch, *, leave_out: int) -> None:
    """Streams are read in this process, one batch left out."""

    def stream(plan, *, config, **span):
        batches = list(read_batches(plan, **span))
        return iter(batches[:leave_out] + batches[leave_out + 1 :])

    monkeypatch.setattr(feed_module, "stream", stream)


def test_step_has_all_micro_batches_of_its_tasks(feed, monkeypatch):
    streamed(monkeypatch, leave_out=16)
    for step in range(4):
        assert [(m.step, m.task) for m in feed.micros(step)] == [
            (step, "a"), (step, "a"), (step, "b"), (step, "b"),
        ]  # fmt: skip


@pytest.mark.parametrize(("leave_out", "step"), [(15, 3), (2, 0)])
def test_short_or_shifted_stream_is_an_error_that_names_step_and_rank(
    feed, monkeypatch, leave_out, step
):
    streamed(monkeypatch, leave_out=leave_out)
    for earlier in range(step):
        feed.micros(earlier)
    with pytest.raises(StreamError, match=f"rank 1: step {step} has micro-batches of"):
        feed.micros(step)
