"""Memory of a server on Ray Serve after 10,000 hostile requests.

Promises of large bodies that trickle or are broken off, bodies without end, heads without end,
wrong forms, pictures that claim more pixels than they may have, wrong tokens; at once as many as
one address may. Growth of the resident memory after a tenth of them, which warms up, of the replica
that listens itself, and of two replicas with Ray Serve's proxy before them.

    python tests/benchmarks/bench_hostile.py [--requests 10000]
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import socket
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parents[2]))
from mmtrain.serving.config import ServingConfig
from mmtrain.serving.networks import ModelSource
from mmtrain.serving.serve import ServerPlace, serving
from tests.mmtrain.example_bundle import example_bundle

AT_ONCE = 40
REQUEST_S = 2.0  # longest life of one hostile request
ROUND_S = 600.0  # of all of them, on one server
BOUND_MB = 64.0
PROCESSES = {"replica": "ray::ServeReplica", "proxy": "ray::ProxyActor"}
TOKEN = "secret"
PROMISED = 32 * 2**20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def bomb() -> bytes:
    """A PNG file of a few bytes whose header claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def head(length: int | None, *, token: str = TOKEN, kind: str = "application/json") -> bytes:
    size = f"content-length: {length}" if length is not None else "transfer-encoding: chunked"
    lines = ["POST /v1/predict HTTP/1.1", "host: here", f"authorization: bearer {token}"]
    return "\r\n".join([*lines, f"content-type: {kind}", size, "", ""]).encode()


def form(file: bytes) -> bytes:
    disposition = b'content-disposition: form-data; name="file"; filename="a"'
    body = b"--x\r\n" + disposition + b"\r\n\r\n" + file + b"\r\n--x--\r\n"
    return head(len(body), kind="multipart/form-data; boundary=x") + body


def hostile(draw: random.Random) -> list[bytes]:
    """What one connection sends, piece by piece."""
    part = draw.randbytes(draw.choice((1, 1000, 200_000)))
    chunked = b"%x\r\n" % len(part) + part + b"\r\n"
    deep = b"[" * 100_000
    return draw.choice(
        (
            [head(PROMISED), b"{"],
            [head(PROMISED), part, part, part],
            [head(2**50), part],
            [head(None), *[chunked] * 20],
            [head(None) + b"fffffffffffffff\r\n" + part],
            [b"GET / HTTP/1.1\r\n", *[b"x-%d: " % n + b"a" * 8000 + b"\r\n" for n in range(20)]],
            [b"GET /" + b"a" * 100_000],
            [part],
            [head(len(deep)) + deep],
            [head(4) + b'"\xff"}'],
            [head(None, token="wrong" * 100), chunked],
            [form(bomb())],
            [form(part)],
            [head(PROMISED, kind=f"multipart/form-data; boundary={'b' * 5000}"), part],
            [b"GET /%d HTTP/1.1\r\nhost: here\r\n\r\n" % draw.getrandbits(64)],
        )
    )


async def attack(port: int, pieces: list[bytes], *, waits: bool) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(REQUEST_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                if waits:
                    await reader.read(2000)
            finally:
                writer.transport.abort()


async def attack_all(port: int, *, count: int, seed: int) -> None:
    draw, places = random.Random(seed), asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with places:
            await attack(port, hostile(draw), waits=draw.random() < 0.8)

    async with asyncio.timeout(ROUND_S):
        await asyncio.gather(*(one() for _ in range(count)))


async def status_of(port: int, request: bytes) -> int:
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        line = await reader.readline()
        writer.transport.abort()
    return int(line.split()[1])


def check(port: int) -> None:
    """A good client is answered, and the connections of the processes that listen are guarded."""
    body = json.dumps({"task": "names", "input": "Peru"}).encode()
    assert asyncio.run(status_of(port, head(len(body)) + body)) == 200
    assert asyncio.run(status_of(port, b"GET /" + b"a" * 70_000)) == 431


def memory_mb(kind: str) -> float:
    """Of the largest process of a kind."""
    found = [
        process.memory_info().rss / 2**20
        for process in psutil.Process().children(recursive=True)
        if "".join(process.cmdline()[:1]).startswith(PROCESSES[kind])
    ]
    return max(found)


def measure(bundle: Path, *, replicas: int, count: int) -> dict[str, float]:
    """Growth in MB by kind of process."""
    source = ModelSource(str(bundle.resolve()), None, named=True)
    place = ServerPlace(port=free_port(), replicas=replicas)
    kinds = ("replica",) if replicas == 1 else ("replica", "proxy")
    config = ServingConfig(token=SecretStr(TOKEN))
    with serving([source], config=config, place=place):
        check(place.port)
        asyncio.run(attack_all(place.port, count=count // 10, seed=0))
        time.sleep(REQUEST_S)
        before = {kind: memory_mb(kind) for kind in kinds}
        asyncio.run(attack_all(place.port, count=count, seed=1))
        time.sleep(REQUEST_S)
        check(place.port)
        return {kind: memory_mb(kind) - before[kind] for kind in kinds}


def main() -> None:
    """Prints a line for each process and way to listen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = example_bundle(Path(temporary) / "bundle")
        for replicas, way in ((1, "direct"), (2, "proxied")):
            for kind, growth in measure(bundle, replicas=replicas, count=chosen.requests).items():
                line = {
                    "name": f"hostile_{kind}_growth_{way}",
                    "ours": round(growth, 1),
                    "peer": BOUND_MB,
                    "ratio": round(max(growth, 0.1) / BOUND_MB, 3),
                    "unit": "MB",
                    "better": "lower",
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
