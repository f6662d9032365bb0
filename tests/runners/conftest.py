"""What tests of whole runs share: one Ray cluster, which takes seconds to start."""

from collections.abc import Iterator

import pytest

from runners.cluster import cluster


@pytest.fixture(scope="session")
def connected() -> Iterator[None]:
    """This process is connected to an embedded cluster of two CPUs, which runs of it use."""
    with cluster(cpus=2):
        yield
