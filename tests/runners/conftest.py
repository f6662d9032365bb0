"""What tests of whole runs share: a Ray cluster, a run that has finished, and an unchanged environment."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from boomspec.core.files import exclusive_lock
from boomspec.store import FolderStore
from runners.cluster.ray_cluster import cluster
from runners.runtime.environment import ALLOW_CPU
from tests.runners import small


@pytest.fixture(scope="session")
def connected() -> Iterator[None]:
    """This process is connected to an embedded cluster, which runs of it use.

    It has two CPUs, and a GPU and a "fast_disk" that are declared, but not there.
    """
    declared = {"RAY_OVERRIDE_RESOURCES": json.dumps({"fast_disk": 1}), ALLOW_CPU: "1"}  # read when it starts
    os.environ |= declared
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # else Ray counts the GPU out
    with cluster(cpus=2, gpus=1):
        for name in declared:
            del os.environ[name]
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the spec `small.SPEC`, all of whose tasks are made: once for all processes of the tests.

    It is never changed; `small.copied` is for that.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "finished"
    store = FolderStore(folder / "store")
    with exclusive_lock(folder.with_suffix(".lock")), _unchanged_environment():
        if not (folder / "done").exists():
            small.execute(small.compiled(small.write_spec(folder), store).graph, store)
            (folder / "done").touch()
    return store.root


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """The pages of runs have no figures beside them, which take longer to draw than a small run to compute."""
    with patch("runners.report.page.write_figure", lambda figure, place: None):
        yield


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """A worker sets its process up for its task (threads, which GPUs); a test that is one must leave none of that."""
    with _unchanged_environment():
        yield


@contextmanager
def _unchanged_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
