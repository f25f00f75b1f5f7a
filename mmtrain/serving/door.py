"""The door of a replica: requests in the house and the bytes that they hold, in all and by address.

Bytes count as they come: what a client promises holds nothing. The uploads of one address take a
share of the house, so that another's request always finds room.
"""

import ipaddress
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mmtrain.serving.config import ServingConfig
from mmtrain.serving.problems import too_busy


def client_address(host: str) -> str:
    """Whom connections are counted for: an IPv4 address, or the /64 that an IPv6 one is of, all of
    which one machine may use.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a socket of this machine
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


@dataclass(slots=True)
class Client:
    """Requests of one address: how many, how many whose body is arriving, and their bytes."""

    requests: int = 0
    uploads: int = 0
    num_bytes: int = 0


@dataclass(slots=True)
class Door:
    """Lets requests in."""

    config: ServingConfig
    requests: int = 0
    num_bytes: int = 0
    clients: dict[str, Client] = field(default_factory=dict)  # those with requests in the house
    answer_s: float = field(default=0.1)  # running mean of an answer's time

    @contextmanager
    def enter(self, address: str) -> Generator["Guest"]:
        """Lets a request in.

        Args:
            address: of the client.

        Raises:
            RequestError: the house is full; 429 with the time after which to come again.
        """
        if self.requests >= self.config.max_queue:
            raise too_busy(held=f"{self.requests} requests wait", retry_after_s=self.answer_s)
        guest = Guest(self, self.clients.setdefault(address, Client()))
        self.requests += 1
        guest.client.requests += 1
        began_s = time.monotonic()
        try:
            yield guest
        finally:
            self.requests -= 1
            self.num_bytes -= guest.num_bytes
            guest.client.num_bytes -= guest.num_bytes
            guest.client.requests -= 1
            if guest.client.requests == 0:
                del self.clients[address]
            self.answer_s += 0.1 * (time.monotonic() - began_s - self.answer_s)


@dataclass(slots=True)
class Guest:
    """A request in the house, and the bytes that it holds."""

    door: Door
    client: Client
    num_bytes: int = 0

    @contextmanager
    def uploading(self) -> Generator[None]:
        """While the body arrives.

        Raises:
            RequestError: the address sends as many bodies as it may.
        """
        config = self.door.config
        if self.client.uploads >= max(1, int(config.max_client_share * config.max_queue)):
            held = f"{self.client.uploads} bodies are arriving from this address"
            raise too_busy(held=held, retry_after_s=self.door.answer_s)
        self.client.uploads += 1
        try:
            yield
        finally:
            self.client.uploads -= 1

    def hold(self, num_bytes: int) -> None:
        """Holds bytes that have come, until the request leaves.

        Raises:
            RequestError: the house, or the address in it, holds as many as it may.
        """
        most = self.door.config.limits.max_held_bytes
        of_client = int(self.door.config.max_client_share * most)
        for what, held, bound in (
            ("in all", self.door.num_bytes, most),
            ("from this address", self.client.num_bytes, of_client),
        ):
            if held > self.num_bytes and held + num_bytes > bound:  # a lone request always fits
                raise too_busy(
                    held=f"{held:,} bytes are held {what}", retry_after_s=self.door.answer_s
                )
        self.num_bytes += num_bytes
        self.client.num_bytes += num_bytes
        self.door.num_bytes += num_bytes
