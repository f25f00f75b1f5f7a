"""Clients that hold places and memory, over real connections: they do not keep others out."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import uvicorn

from mmtrain.serving.connections import MAX_HEAD_BYTES, GuardedProtocol
from mmtrain.serving.door import client_address
from mmtrain.serving.networks import Networks
from tests.mmtrain.example_server import example_app, example_networks

WAIT_S = 20.0  # of a busy machine, for what takes milliseconds
PROMISED = 32 * 2**20 * 4 // 3  # the largest file in base64; six of them are all that is held
BODY = json.dumps({"task": "names", "input": "Peru"}).encode()
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"  # two addresses of one machine


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return example_networks(tmp_path_factory.mktemp("networks"))


class Listening:
    """A server of real connections in a thread."""

    def __init__(self, networks: Networks, *, head_s: float, connections: int, **settings: Any):
        class Guarded(GuardedProtocol):
            counts: ClassVar[Counter[str]] = Counter()

        Guarded.head_s, Guarded.max_connections = head_s, connections
        self.counts = Guarded.counts
        app = example_app(networks, **settings)
        self.door = app.state.service.door
        self._socket = socket.create_server(("0.0.0.0", 0))
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(app, http=Guarded, log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def __enter__(self) -> "Listening":
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(WAIT_S)

    def connect(self, source: str = HERE) -> socket.socket:
        return socket.create_connection((HERE, self.port), WAIT_S, source_address=(source, 0))

    def promise(self, size: int, *, sent: bytes = b"{", source: str = HERE) -> socket.socket:
        """A request that says how long its body is, and sends its beginning."""
        line = self.connect(source)
        head = "POST /v1/predict HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
        line.sendall(f"{head}content-length: {size}\r\n\r\n".encode() + sent)
        return line

    def ask(self, body: bytes = BODY, *, source: str = HERE) -> tuple[int, str]:
        line = http.client.HTTPConnection(HERE, self.port, WAIT_S, source_address=(source, 0))
        with contextlib.closing(line):
            line.request("POST", "/v1/predict", body, {"content-type": "application/json"})
            answer = line.getresponse()
            return answer.status, answer.read().decode()


def listening(networks: Networks, **settings: Any) -> Listening:
    return Listening(networks, **{"head_s": WAIT_S, "connections": 100, **settings})


def wait_until(is_so: Any) -> None:
    ends = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.01)


def answer_of(line: socket.socket) -> str:
    """All that comes until the other side closes, or has answered and goes on."""
    said = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        line.settimeout(WAIT_S)
        while chunk := line.recv(65536):
            said += chunk
            if said.endswith(b"}"):
                break
    return said.decode()


@contextlib.contextmanager
def held(lines: list[socket.socket]) -> Iterator[list[socket.socket]]:
    try:
        yield lines
    finally:
        for line in lines:
            line.close()


def test_six_slow_promises_do_not_lock_out_a_seventh_client(networks: Networks):
    with (
        listening(networks, stall_s=WAIT_S, timeout_s=3 * WAIT_S) as server,
        held([server.promise(PROMISED) for _ in range(6)]),
    ):
        wait_until(lambda: server.door.num_bytes == 6)  # what came, not what was promised
        assert server.ask()[0] == 200


@pytest.mark.parametrize("pause_s", [0.1, WAIT_S])
def test_a_body_that_trickles_or_stops_is_408_and_leaves_the_house(
    networks: Networks, pause_s: float
):
    with listening(networks, stall_s=0.5) as server, held([server.promise(PROMISED)]) as lines:
        (line,) = lines
        line.settimeout(pause_s)
        said = b""
        while not said.endswith(b"}"):
            with contextlib.suppress(TimeoutError):
                said += line.recv(65536)
            with contextlib.suppress(ConnectionError):
                line.sendall(b" ")
        assert said.startswith(b"HTTP/1.1 408")
        assert b"send at least 4,096 bytes a second" in said
        wait_until(lambda: server.door.requests == server.door.num_bytes == 0)
        assert server.door.clients == {}


def test_uploads_of_one_address_leave_room_for_another(networks: Networks):
    with (
        listening(networks, max_queue=4, stall_s=WAIT_S, timeout_s=3 * WAIT_S) as server,
        held([server.promise(PROMISED) for _ in range(2)]),
    ):
        wait_until(lambda: server.door.num_bytes == 2)
        with server.promise(PROMISED) as third:
            said = answer_of(third)
        assert said.startswith("HTTP/1.1 429")
        assert "2 bodies are arriving from this address" in said
        assert server.ask(source=ELSEWHERE)[0] == 200


def test_bytes_of_one_address_leave_room_for_another(networks: Networks):
    limits = {"max_held_bytes": 200_000}
    with (
        listening(networks, limits=limits, stall_s=WAIT_S, timeout_s=3 * WAIT_S) as server,
        held([server.promise(PROMISED, sent=b" " * 90_000)]),
    ):
        wait_until(lambda: server.door.num_bytes == 90_000)
        status, words = server.ask(b" " * 50_000 + BODY)
        assert status == 429
        assert "bytes are held from this address" in words
        assert server.ask(b" " * 50_000 + BODY, source=ELSEWHERE)[0] == 200
        wait_until(lambda: server.door.num_bytes == 90_000)


def test_a_head_that_does_not_end_is_408_by_time_and_431_by_size(networks: Networks):
    with listening(networks, head_s=0.3) as server:
        with server.connect() as silent, server.connect() as begun:
            begun.sendall(b"GET / HTTP/1.1\r\nhost: he")
            assert answer_of(silent).startswith("HTTP/1.1 408")
            assert "did not arrive in time" in answer_of(begun)
        with server.connect() as large:
            large.sendall(b"GET /" + b"a" * (MAX_HEAD_BYTES + 1))
            assert "over 65,536 bytes; send fewer headers" in answer_of(large)
        wait_until(lambda: not server.counts)


def test_a_second_head_on_a_connection_is_bounded_too(networks: Networks):
    with listening(networks) as server, server.connect() as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n")
        assert answer_of(line).endswith('{"status":"ok"}')
        line.sendall(b"GET /" + b"a" * (MAX_HEAD_BYTES + 1))
        assert answer_of(line).startswith("HTTP/1.1 431")


def test_connections_of_one_address_are_bounded(networks: Networks):
    with listening(networks, connections=3) as server:
        with held([server.connect() for _ in range(3)]):
            wait_until(lambda: server.counts == {HERE: 3})
            with server.connect() as fourth:
                assert "over 3 connections from 127.0.0.1" in answer_of(fourth)
            assert server.ask(source=ELSEWHERE)[0] == 200
        wait_until(lambda: not server.counts)
        assert server.ask()[0] == 200


def test_what_is_sent_after_the_answer_is_not_read_for_ever(networks: Networks):
    with listening(networks, head_s=0.3) as server, server.promise(2**40) as line:
        assert answer_of(line).startswith("HTTP/1.1 413")
        ends = time.monotonic() + WAIT_S
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < ends:
                line.sendall(b" " * 1000)
                time.sleep(0.01)
        assert time.monotonic() < ends


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_an_address_is_what_one_machine_has(host: str, address: str):
    assert client_address(host) == address
