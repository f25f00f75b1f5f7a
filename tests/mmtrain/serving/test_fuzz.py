"""The HTTP interface under made-up requests: no 500, no hang, no growth."""

import gc
import json
import time
from collections.abc import Iterator

import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from mmtrain.serving.networks import Networks
from tests.mmtrain.example_kinds import clip, picture
from tests.mmtrain.example_server import example_app, example_networks, senses_network, wav
from tests.waiting import BUSY_S

PREDICT = "/v1/predict"
KNOWN = {200, 400, 408, 413, 415, 422}
HURRIED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FILES = {"image": picture(1), "video": clip(1), "audio": wav(0.2)}
TASKS = {"image": "shade", "video": "motion", "audio": "word"}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    folder = tmp_path_factory.mktemp("networks")
    heard = senses_network(folder / "senses")
    return Networks([*example_networks(folder).networks, heard])


def fuzzed_app(networks: Networks) -> object:
    limits = {"max_upload_bytes": 100_000, "max_pixels": 100_000, "max_frames": 30}
    return example_app(networks, limits=limits, timeout_s=BUSY_S)


@pytest.fixture(scope="module")
def client(networks: Networks) -> Iterator[TestClient]:
    with TestClient(fuzzed_app(networks)) as client:
        yield client


@pytest.fixture
def described(networks: Networks) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_asgi("/openapi.json", fuzzed_app(networks))


ROUTES = ((PREDICT, "POST"), ("/v1/tasks", "GET"), ("/healthz", "GET"), ("/metrics", "GET"))


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_whatever_the_description_allows_is_answered_as_it_says(
    described: schemathesis.BaseSchema, path: str, method: str
):
    @HURRIED
    @given(case=described[path][method].as_strategy())
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(
            checks=[
                not_a_server_error,
                status_code_conformance,
                content_type_conformance,
                response_schema_conformance,
            ]
        )

    check()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(), of, max_size=3),
    max_leaves=5,
)
fields = st.fixed_dictionaries(
    {"input": st.text() | anything},
    optional={
        "task": st.sampled_from(["names", "trees", "shade"]) | anything,
        "modality": st.sampled_from(["text", "image", "label"]) | anything,
        "subtasks": st.lists(st.sampled_from(["names", "heard"]) | anything, max_size=3),
        "beam_size": st.integers(-1, 9) | anything,
    },
)


@HURRIED
@given(fields)
def test_no_json_breaks_the_server(client: TestClient, given_fields: object):
    body = json.dumps(given_fields)  # lone surrogates stay, as escapes
    answer = client.post(PREDICT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in KNOWN
    if answer.status_code != 200:
        assert set(answer.json()) == {"cause", "value", "remedy"}


@HURRIED
@given(
    st.binary(max_size=300),
    st.sampled_from(["application/json", "multipart/form-data; boundary=b"]),
)
def test_no_bytes_break_the_server(client: TestClient, body: bytes, kind: str):
    framed = b"--b\r\n" + body + b"\r\n--b--\r\n" if "multipart" in kind else body
    answer = client.post(PREDICT, content=framed, headers={"content-type": kind})
    assert answer.status_code in KNOWN


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """A file with some bytes changed, cut short, or with some more behind."""
    changes = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=8)

    def apply(drawn: tuple[list[tuple[int, int]], int, bytes]) -> bytes:
        changed = bytearray(data)
        for place, value in drawn[0]:
            changed[place] = value
        return bytes(changed[: drawn[1]]) + drawn[2]

    ends = st.just(len(data)) | st.integers(0, len(data))
    return st.tuples(changes, ends, st.binary(max_size=20)).map(apply)


@pytest.mark.parametrize("modality", FILES)
@HURRIED
@given(data=st.data())
def test_no_damaged_file_breaks_the_server(client: TestClient, modality: str, data: st.DataObject):
    sent = data.draw(damaged(FILES[modality]))
    began_s = time.process_time()
    answer = client.post(
        PREDICT,
        data={"task": TASKS[modality]},
        files={"file": ("f", sent, "application/octet-stream")},
    )
    assert answer.status_code in KNOWN
    assert time.process_time() - began_s < 20


@HURRIED
@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40))
def test_no_path_breaks_the_server_or_leaves_its_folder(client: TestClient, path: str):
    answer = client.get("/page/" + path.replace("?", "").replace("#", ""))
    assert answer.status_code in {200, 307, 404, 405}
    assert "root:" not in answer.text


def test_memory_does_not_grow_over_thousands_of_requests(client: TestClient):
    process = psutil.Process()
    bodies = [
        lambda number: {"json": {"task": "no" * (number % 9), "input": "x"}},
        lambda number: {"json": {"task": "names", "input": "far " * 40 + str(number)}},
        lambda number: {"data": {"task": "shade"}, "files": {"file": ("f", FILES["image"][:60])}},
        lambda number: {"data": {"task": "shade"}, "files": {"file": ("f", FILES["image"])}},
    ]

    def ask(count: int) -> int:
        for number in range(count):
            client.post(PREDICT, **bodies[number % len(bodies)](number))
        gc.collect()
        return process.memory_info().rss

    before = ask(300)
    after = ask(1500)
    assert after - before < 20 * 2**20
