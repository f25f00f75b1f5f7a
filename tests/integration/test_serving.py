"""Serving on a Ray cluster: an app with a token answers, is flooded, and leaves nothing behind."""

import asyncio
import socket
from pathlib import Path

import httpx2
import pytest
import ray
from ray import serve

from mmtrain.serving.config import ServingConfig
from mmtrain.serving.networks import ModelSource
from mmtrain.serving.serve import ServerPlace, ServingError, serving
from tests.mmtrain.example_bundle import example_bundle
from tests.mmtrain.example_kinds import picture
from tests.waiting import BUSY_S, SOON_S

HEADERS = {"authorization": "Bearer secret"}
BODY = {"task": "names", "input": "Peru"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def flood(url: str, *, count: int) -> list[int]:
    async with httpx2.AsyncClient(headers=HEADERS, timeout=BUSY_S) as client:
        asked = [client.post(f"{url}/v1/predict", json=BODY) for _ in range(count)]
        return [answer.status_code for answer in await asyncio.gather(*asked)]


def test_a_served_model_answers_over_http_and_leaves_nothing_when_it_stops(
    ray_cluster: None, tmp_path: Path
):
    source = ModelSource(str(example_bundle(tmp_path / "bundle")), None, named=True)
    config = ServingConfig.model_validate({"token": "secret", "max_queue": 2, "batch_wait_ms": 0})
    place = ServerPlace(port=free_port())
    with serving([source], config=config, place=place) as url:
        assert httpx2.get(f"{url}/healthz", timeout=BUSY_S).json() == {"status": "ok"}
        assert httpx2.post(f"{url}/v1/predict", json=BODY, timeout=BUSY_S).status_code == 401
        with httpx2.Client(headers=HEADERS, timeout=BUSY_S) as client:
            (said,) = client.post(f"{url}/v1/predict", json=BODY).json()["answers"]
            file = {"file": ("a.png", picture(1), "image/png")}
            seen = client.post(f"{url}/v1/predict", files=file).json()
            assert said["task"] == "names"
            assert seen["answers"][0]["task"] == "shades"
            statuses = asyncio.run(flood(url, count=40))
            assert set(statuses) == {200, 429}
            counted = client.get(f"{url}/metrics").text
            assert 'path="/v1/predict",status="429"' in counted
        again = serving([source], config=config, place=place)
        with pytest.raises(ServingError, match="give another --host or --port"), again:
            pass
    assert ray.is_initialized()
    assert serve.status().applications == {}
    serve.shutdown()
    with pytest.raises(httpx2.HTTPError):
        httpx2.get(f"{place.url}/healthz", timeout=SOON_S)


def test_more_replicas_than_the_cluster_holds_are_refused_with_the_numbers(
    ray_cluster: None, tmp_path: Path
):
    place = ServerPlace(port=free_port(), replicas=40)
    served = serving([], config=ServingConfig(), place=place)
    words = "40 replicas of 1 CPU need 40, the cluster has 6"
    with pytest.raises(ServingError, match=words), served:
        pass
