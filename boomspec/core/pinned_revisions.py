"""Commits that are settled beforehand: what a lock says that names of the hub stood for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


def request(name: str, revision: str | None) -> str:
    """A name of the hub as a spec asks for it: "owner/name", or "owner/name@revision"."""
    return name if revision is None else f"{name}@{revision}"


@dataclass(frozen=True)
class Pins:
    """Commits by request. A request that is not here is put to the hub.

    `only_offline`: the hub is asked all the same, and these are for what it gives no answer to.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)
    only_offline: bool = False

    def model(self, name: str, revision: str | None) -> str | None:
        """The settled commit of a model; None where there is none."""
        return self.models.get(request(name, revision))

    def dataset(self, name: str, revision: str | None) -> str | None:
        """The settled commit of a data set; None where there is none."""
        return self.datasets.get(request(name, revision))


NO_PINS = Pins()
