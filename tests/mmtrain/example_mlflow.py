"""Real MLflow servers for tests: one in a process, and one behind a line of a byte a second."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

START_S = 130  # seconds alone, a minute on a busy machine
BYTE_S = 1.0  # between two bytes of an answer that trickles
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2000\r\n\r\n"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Server:
    """An `mlflow server` process on a loopback port, with its store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=self._folder
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError((self._folder / "server.log").read_text())

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Trickle:
    """A server whose answers come a byte a second, as long as `slow` says so of a request.

    With a port behind it, requests reach what listens there at once, and its answers trickle;
    without, each request has the beginning of an answer.
    """

    def __init__(self, behind: int | None = None) -> None:
        self._behind = behind
        self.slow: Callable[[bytes], bool] = lambda request: True
        self._ended = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                line, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        with line, contextlib.suppress(OSError):
            if self._behind is None:
                line.recv(65536)
                self._send(line, ANSWER + b" " * 2000, slow=True)
                return
            with socket.create_connection(("127.0.0.1", self._behind)) as server:
                threading.Thread(target=self._back, args=(server, line), daemon=True).start()
                while data := line.recv(65536):
                    if data[:5] in (b"GET /", b"POST ", b"PUT /", b"PATCH"):
                        self._is_slow = self.slow(data)
                    server.sendall(data)

    _is_slow = True

    def _back(self, server: socket.socket, line: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                self._send(line, data, slow=self._is_slow)
            line.shutdown(socket.SHUT_RDWR)

    def _send(self, line: socket.socket, data: bytes, *, slow: bool) -> None:
        if not slow:
            line.sendall(data)
            return
        for place in range(len(data)):
            line.sendall(data[place : place + 1])
            if self._ended.wait(BYTE_S):
                return


@contextlib.contextmanager
def trickling(behind: int | None = None) -> Iterator[Trickle]:
    server = Trickle(behind)
    try:
        yield server
    finally:
        server.close()
