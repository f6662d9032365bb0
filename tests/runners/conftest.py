"""What tests of whole runs share: one Ray cluster, which takes seconds to start, and an unchanged environment."""

import os
from collections.abc import Iterator

import pytest

from runners.cluster.ray_cluster import cluster


@pytest.fixture(scope="session")
def connected() -> Iterator[None]:
    """This process is connected to an embedded cluster of two CPUs, which runs of it use."""
    with cluster(cpus=2):
        yield


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """A worker sets its process up for its task (threads, which GPUs); a test that is one must leave none of that."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
