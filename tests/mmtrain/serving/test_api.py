"""The HTTP interface, over small networks in this process."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from mmtrain.serving.meters import add_up
from mmtrain.serving.networks import Networks
from tests.mmtrain.example_kinds import clip, picture
from tests.mmtrain.example_server import (
    example_app,
    example_networks,
    names_of,
    senses_network,
    wav,
)
from tests.waiting import BUSY_S, until

PREDICT = "/v1/predict"


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return example_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def client(networks: Networks) -> Iterator[TestClient]:
    with TestClient(example_app(networks)) as client:
        yield client


@pytest.fixture(scope="module")
def senses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    network = senses_network(tmp_path_factory.mktemp("senses"))
    with TestClient(example_app(Networks([network]))) as client:
        yield client


def upload(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return {"file": ("given", data, kind)}


def refusal(answer: Any, status: int) -> str:
    """The words of an answer that is none: cause, value and remedy, and nothing else."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"cause", "value", "remedy"}
    return "; ".join(answer.json().values())


def test_a_text_is_answered_with_a_text_and_its_log_probability(
    client: TestClient, networks: Networks
):
    answer = client.post(PREDICT, json={"task": "names", "input": "Peru"})
    (said,) = answer.json()["answers"]
    (expected,) = networks.whole("names").predictor.predict("names", ["Peru"])
    assert answer.status_code == 200
    assert said["text"] == expected.text
    assert said["log_prob"] == pytest.approx(expected.log_prob, abs=1e-4)


def test_base64_and_multipart_get_the_same_answer(client: TestClient):
    coded = base64.b64encode(picture(1)).decode()
    first = client.post(PREDICT, json={"task": "shade", "input": coded})
    second = client.post(PREDICT, data={"task": "shade"}, files=upload(picture(1)))
    assert first.json()["answers"] == second.json()["answers"]
    assert sum(first.json()["answers"][0]["scores"].values()) > 0


def test_without_a_task_every_task_of_the_modality_answers(client: TestClient):
    answer = client.post(PREDICT, files=upload(picture(1))).json()
    assert names_of(answer["answers"]) == ["shades", "shade", "things", "action", "place", "ground"]
    assert [one["uri"] for one in answer["networks"]] == ["words", "kinds"]
    assert [one["network"] for one in answer["answers"]] == [0, 1, 1, 1, 1, 1]


def test_a_video_is_answered(client: TestClient):
    answer = client.post(PREDICT, data={"modality": "video"}, files=upload(clip(1)))
    assert names_of(answer.json()["answers"]) == ["motion"]


def test_a_sound_is_answered_by_what_hears(senses: TestClient):
    answer = senses.post(PREDICT, files=upload(wav(0.3), "audio/wav"))
    assert names_of(answer.json()["answers"]) == ["word", "voice"]


def test_a_mask_is_a_picture_and_a_box_is_in_shares_of_the_picture(client: TestClient):
    answer = client.post(PREDICT, data={"modality": "image"}, files=upload(picture(1)))
    by_task = {one["task"]: one for one in answer.json()["answers"]}
    mask = Image.open(io.BytesIO(base64.b64decode(by_task["ground"]["mask"])))
    box, values = by_task["place"]["box"], by_task["place"]["values"]
    assert mask.size == (16, 16)
    assert box["left"] == pytest.approx(min(1, max(0, values["left"] / 16)))
    assert by_task["shade"]["box"] is None


def test_subtasks_are_answered_by_a_smaller_network(senses: TestClient):
    whole = senses.post(PREDICT, data={"task": "word"}, files=upload(wav(0.3), "audio/wav"))
    cut = senses.post(
        PREDICT, data={"task": "word", "subtasks": "heard"}, files=upload(wav(0.3), "audio/wav")
    )
    (large,), (small,) = whole.json()["networks"], cut.json()["networks"]
    assert small["parameters"] < small["whole_parameters"] == large["parameters"]
    assert (small["subtasks"], large["subtasks"]) == (["heard"], ["seen", "moving", "heard"])
    assert cut.json()["answers"][0]["task"] == "word"


def test_tasks_are_listed_with_what_they_take_and_give(client: TestClient, senses: TestClient):
    listing = client.get("/v1/tasks").json()
    tasks = {one["name"]: one for one in listing["tasks"]}
    assert list(tasks)[:4] == ["shades", "trees", "names", "shade"]
    assert tasks["action"]["classes"] == [
        "verb cut", "verb pour", "noun egg", "noun oil", "noun salt"
    ]  # fmt: skip
    assert tasks["names"]["takes"] == {"max_tokens": 16}
    assert tasks["place"]["values"] == ["left", "top", "right", "bottom"]
    assert listing["limits"]["max_frames"] == 600
    heard = senses.get("/v1/tasks").json()["tasks"][-1]
    assert heard["subtasks"] == ["heard"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'"Peru"', 422, "a field is wrong"),
        (b'{"task": "names"}', 422, "input"),
        (b'{"task": "names", "input": "Peru", "beams": 2}', 422, "beams"),
        (b'{"task": "names", "input": "Peru", "beam_size": 9}', 422, "beam_size"),
        (b'{"task": "nams", "input": "Peru"}', 422, "nearest: names"),
        (b'{"task": "../../etc/passwd", "input": "Peru"}', 422, "no task"),
        (b'{"task": "names", "input": ""}', 422, "empty"),
        (b'{"task": "names", "input": "\\ud800"}', 400, "not JSON"),
        (b'{"input": "Peru"}', 422, "name `task` or `modality`"),
        (b'{"modality": "smell", "input": "Peru"}', 422, "no modality 'smell'"),
        (b'{"task": "shade", "input": "../../etc/passwd"}', 422, "not base64"),
        (b'{"task": "names", "input": "Peru", "subtasks": ["nam"]}', 422, "nearest: names"),
        (b'{"task": "names", "input": "' + b"far " * 40 + b'"}', 422, "at most 16"),
    ],
)
def test_a_wrong_body_is_refused_with_cause_value_and_remedy(
    client: TestClient, body: bytes, status: int, words: str
):
    answer = client.post(PREDICT, content=body, headers={"content-type": "application/json"})
    assert words in refusal(answer, status)


@pytest.mark.parametrize(
    ("data", "files", "status", "words"),
    [
        ({"task": "shade"}, {}, 415, "multipart/form-data with a file"),
        ({"task": "shade"}, upload(wav(0.1)), 415, "a WAV file; send image"),
        ({"task": "shade"}, upload(picture(1)[:50]), 422, "cannot be read as image"),
        ({"task": "shade", "colour": "red"}, upload(picture(1)), 422, "colour"),
        ({"task": "shade", "beam_size": "two"}, upload(picture(1)), 422, "beam_size"),
        ({"task": "shade"}, {"picture": ("a", picture(1), "image/png")}, 422, "picture"),
        ({"task": "names"}, upload(picture(1)), 415, "a PNG file; send a text"),
    ],
)
def test_a_wrong_form_is_refused_with_cause_value_and_remedy(
    client: TestClient, data: dict, files: dict, status: int, words: str
):
    assert words in refusal(client.post(PREDICT, data=data, files=files), status)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "text/plain"}, b"Peru", 415),
        ({}, b"Peru", 415),
        ({"content-type": "multipart/form-data"}, b"--x", 400),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--y\r\n\r\n", 400),
        ({"content-type": "multipart/form-data; boundary=x; charset=no"}, b"--x\r\n", 422),
        ({"content-type": "application/json", "content-encoding": "gzip"}, b"\x1f\x8b", 415),
    ],
)
def test_a_body_of_another_kind_is_refused(
    client: TestClient, headers: dict[str, str], body: bytes, status: int
):
    refusal(client.post(PREDICT, content=body, headers=headers), status)


def test_a_body_over_the_limit_is_refused_whether_its_length_is_told_or_not(networks: Networks):
    app = example_app(networks, limits={"max_upload_bytes": 1000})
    kind = {"content-type": "application/json"}
    with TestClient(app) as client:
        told = client.post(PREDICT, content=b"x" * 100_000, headers=kind)
        untold = client.post(PREDICT, content=iter([b"x" * 50_000] * 2), headers=kind)
    assert "100,000 bytes; send at most" in refusal(told, 413)
    assert "100,000 bytes; send at most" in refusal(untold, 413)


def test_paths_that_leave_the_page_are_not_found(client: TestClient):
    for path in ("/page/../serving.py", "/page/%2e%2e/serving.py", "/page//etc/passwd", "/page/"):
        refusal(client.get(path), 404)


def test_a_token_guards_all_but_the_page_and_the_health(networks: Networks):
    with TestClient(example_app(networks, token="secret")) as client:
        for path in ("/v1/tasks", "/metrics", "/openapi.json", "/v1/other"):
            answer = client.get(path)
            assert "Authorization: Bearer TOKEN" in refusal(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in (
            "Bearer secreT",
            "Bearer secret ",
            "Basic secret",
            "Bearer",
            "secret",
            "\xff",
        ):
            headers = {"authorization": wrong.encode("latin-1")}
            assert client.get("/v1/tasks", headers=headers).status_code == 401, wrong
        right = {"authorization": "Bearer secret"}
        for scheme in ("Bearer", "bearer", "BEARER", "bearer "):  # RFC 9110, Sec. 11.1 and 11.4
            headers = {"authorization": f"{scheme} secret"}
            assert client.get("/v1/tasks", headers=headers).status_code == 200, scheme
        body = {"task": "names", "input": "Peru"}
        assert client.post(PREDICT, json=body).status_code == 401
        assert client.post(PREDICT, json=body, headers=right).status_code == 200
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/").status_code == client.get("/page/page.js").status_code == 200


def test_a_browser_is_told_to_load_nothing_from_elsewhere(client: TestClient):
    for path in ("/", "/docs", "/page/page.js", "/v1/tasks"):
        policy = client.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
    for path in ("/", "/docs", "/page/page.css"):
        assert "http" not in client.get(path).text


def test_the_interface_is_described(client: TestClient):
    schema = client.get("/openapi.json").json()
    assert list(schema["paths"]) == ["/v1/predict", "/v1/tasks", "/healthz", "/metrics"]
    body = schema["paths"][PREDICT]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}


def test_requests_are_counted_by_path_and_status(networks: Networks):
    with TestClient(example_app(networks)) as client:
        client.post(PREDICT, json={"task": "names", "input": "Peru"})
        client.post(PREDICT, json={"task": "nam", "input": "Peru"})
        client.get("/nowhere/1")
        text = client.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counted = {
        (sample.labels["path"], sample.labels["status"]): sample.value
        for sample in families["mmtrain_requests"].samples
        if sample.name.endswith("_total")
    }
    assert counted == {(PREDICT, "200"): 1, (PREDICT, "422"): 1, ("other", "404"): 1}
    assert families["mmtrain_batch_size"].samples[-2].value == 1.0


def test_counts_of_replicas_are_added_up(networks: Networks):
    with TestClient(example_app(networks)) as client:
        client.get("/healthz")
        text = client.get("/metrics").text
    twice = add_up([text, text])
    assert 'mmtrain_requests_total{path="/healthz",status="200"} 2.0' in twice
    assert twice.count("# TYPE mmtrain_requests_total counter") == 1


class Slow:
    """In place of a model's answer: waits until it is let go."""

    def __init__(self, networks: Networks) -> None:
        self.sizes: list[int] = []
        self.goes_on = threading.Event()
        self._predictor = networks.whole("names").predictor
        self._answer = self._predictor.predict_batch

    def __call__(self, tasks: Any, arrays: Any, **options: Any) -> Any:
        self.sizes.append(len(arrays))
        self.goes_on.wait(BUSY_S)
        return self._answer(tasks, arrays, **options)


@pytest.fixture
def slow(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow(networks)
    monkeypatch.setattr(networks.whole("names").predictor, "predict_batch", slow)
    return slow


async def flood(app: Any, *, count: int, slow: Slow, let_go: Callable[[int], object]) -> list[Any]:
    """Answers to that many requests at once.

    The first is held until `let_go`, which is given the number of those that are answered.
    """
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
        body = {"task": "names", "input": "Peru"}
        asked = [asyncio.create_task(client.post(PREDICT, json=body)) for _ in range(count)]
        await until(lambda: let_go(sum(request.done() for request in asked)))
        slow.goes_on.set()
        return list(await asyncio.gather(*asked))


def test_a_full_house_answers_429_with_the_time_to_come_again(networks: Networks, slow: Slow):
    app = example_app(networks, max_queue=5)
    answers = asyncio.run(flood(app, count=12, slow=slow, let_go=lambda done: done == 7))
    full = [answer for answer in answers if answer.status_code == 429]
    assert [answer.status_code for answer in answers].count(200) == 5
    assert len(full) == 7
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in full)
    assert "5 requests wait" in refusal(full[0], 429)
    assert app.state.service.door.requests == app.state.service.door.num_bytes == 0


def test_requests_of_one_task_are_answered_together(networks: Networks, slow: Slow):
    app = example_app(networks)
    answers = asyncio.run(flood(app, count=9, slow=slow, let_go=lambda _: slow.sizes))
    assert {answer.status_code for answer in answers} == {200}
    assert slow.sizes == [9]
    assert len({json.dumps(answer.json()["answers"][0]["text"]) for answer in answers}) == 1


def test_an_answer_that_takes_too_long_is_504_and_leaves_the_queue(networks: Networks, slow: Slow):
    app = example_app(networks, timeout_s=3, max_batch=1)
    answers = asyncio.run(flood(app, count=3, slow=slow, let_go=lambda done: done == 3))
    assert [answer.status_code for answer in answers] == [504, 504, 504]
    assert "3 s" in refusal(answers[0], 504)
    assert app.state.service.batcher.num_waiting == 0
    assert slow.sizes == [1]  # what nobody waits for any more is not answered


def test_a_mistake_of_ours_is_500_without_a_traceback(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret of the house")

    monkeypatch.setattr(networks.whole("names").predictor, "predict_batch", fails)
    with TestClient(example_app(networks), raise_server_exceptions=False) as client:
        answer = client.post(PREDICT, json={"task": "names", "input": "Peru"})
    assert "ZeroDivisionError" in refusal(answer, 500)
    assert "secret" not in answer.text


def test_the_page_is_a_few_files_that_are_packaged():
    page = Path(__file__).parents[3] / "mmtrain" / "serving" / "page"
    assert {path.name for path in page.iterdir()} == {
        "index.html", "docs.html", "page.css", "page.js", "show.js", "record.js", "docs.js",
        "icon.svg",
    }  # fmt: skip
