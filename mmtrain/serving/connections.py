"""Connections of the HTTP server, bounded before a request is whole: by address, time and size.

uvicorn waits for ever for the end of a request's head, and keeps whatever comes of it; an app sees
neither. Ray Serve calls `guard` in every process that listens, by its variable
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
"""

import asyncio
import os
from collections import Counter
from http import HTTPStatus
from typing import ClassVar

from starlette.middleware import Middleware
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mmtrain.serving.door import client_address

CALLBACK = f"{__name__}:guard"
HEAD_S = 10.0  # longest wait for a request's head, and for the rest of a body that is not read
MAX_HEAD_BYTES = 64 * 1024
MAX_CLIENT_CONNECTIONS = 256  # of one address; MMTRAIN_CLIENT_CONNECTIONS where many share one


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol of a connection; refuses with a line of text and closes."""

    counts: ClassVar[Counter[str]] = Counter()  # connections of each address, in this process
    head_s = HEAD_S
    max_connections = MAX_CLIENT_CONNECTIONS

    _address: str | None = None
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _reads_head = True
    _reads_body = False
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own type
        """Counts, and begins to wait for a head."""
        super().connection_made(transport)
        self._address = client_address(self.client[0] if self.client else "")
        self.counts[self._address] += 1
        self._wait(HTTPStatus.REQUEST_TIMEOUT, "the head of the request did not arrive in time")
        if self.counts[self._address] > self.max_connections:
            self._refuse(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"over {self.max_connections} connections from {self._address}; close some",
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """No longer counts."""
        self._stop_waiting()
        if self._address is not None:
            self.counts[self._address] -= 1
            if not self.counts[self._address]:
                del self.counts[self._address]
            self._address = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bounds what belongs to a head, and what nobody reads."""
        if self._is_refused:
            return
        if self._reads_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._reads_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the head of the request is over {MAX_HEAD_BYTES:,} bytes; send fewer headers",
            )
        if self._reads_body and self.cycle.response_complete and self._timer is None:
            self._wait(HTTPStatus.REQUEST_TIMEOUT, "the request was answered before its end")

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        if self._timer is None:
            self._wait(HTTPStatus.REQUEST_TIMEOUT, "the head of the request did not arrive in time")

    def on_headers_complete(self) -> None:
        """It has ended."""
        self._stop_waiting()
        self._reads_head, self._reads_body, self._head_bytes = False, True, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body has ended; what comes next is another head."""
        self._stop_waiting()
        self._reads_head, self._reads_body = True, False
        super().on_message_complete()

    def _should_upgrade_to_ws(self) -> bool:
        return False  # nothing here speaks WebSocket, and a connection that does would stay counted

    def _wait(self, status: HTTPStatus, text: str) -> None:
        self._timer = self.loop.call_later(self.head_s, self._refuse, status, text)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self._stop_waiting()
        self._is_refused = True
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if self._reads_head and not is_answering:  # else there is an answer, or will be
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain\r\n"
            head += f"content-length: {len(text) + 1}\r\nconnection: close\r\n\r\n"
            self.transport.write(f"{head}{text}\n".encode())
        self.transport.close()


def guard() -> list[Middleware]:
    """Makes uvicorn's servers that start in this process use `GuardedProtocol`."""
    if most := os.environ.get("MMTRAIN_CLIENT_CONNECTIONS"):
        GuardedProtocol.max_connections = int(most)
    auto.AutoHTTPProtocol = GuardedProtocol
    return []
