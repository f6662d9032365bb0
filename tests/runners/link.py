"""A second machine, as far as the network goes: a namespace of its own behind a bridge, whose link can be cut.

Nobody is told of the cut, no connection is reset: what is sent is just gone, as with a cable that is pulled out of a
switch. It needs the rights of root, and iproute2's `ip`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


class NoLinkError(Exception):
    pass


@dataclass(frozen=True)
class Link:
    """`near` and `far`: the addresses of its two ends. `within`: the command that runs another one at the far end."""

    name: str
    near: str
    far: str

    @property
    def within(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        _ip("link", "set", f"{self.name}a", "down")

    def mend(self) -> None:
        _ip("link", "set", f"{self.name}a", "up")


@contextmanager
def linked() -> Iterator[Link]:
    """Such a network while the context lasts. Raises NoLinkError, which says why, where there cannot be one here."""
    number = os.getpid()
    network = f"10.{200 + number % 50}.{number // 50 % 250}"
    link = Link(f"bx{number}", f"{network}.1", f"{network}.2")
    port, bridge, end = f"{link.name}a", f"{link.name}b", ["-n", link.name]
    with ExitStack() as made:
        try:
            _ip("netns", "add", link.name)
            made.callback(_ip, "netns", "del", link.name)
            _ip("link", "add", bridge, "type", "bridge")
            made.callback(_ip, "link", "del", bridge)
            _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", link.name)
            _ip("link", "set", port, "master", bridge, "up")
            _ip("addr", "add", f"{link.near}/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            _ip(*end, "link", "set", "lo", "up")
            _ip(*end, "addr", "add", f"{link.far}/24", "dev", "eth0")
            _ip(*end, "link", "set", "eth0", "up")
        except FileNotFoundError as error:
            raise NoLinkError("there is no `ip` here (Debian's package iproute2)") from error
        except subprocess.CalledProcessError as error:
            raise NoLinkError(f"no network of its own can be made here: {error.stderr.strip()}") from error
        yield link


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
