"""`python -m tests.runners.declared GRAPH.json STORE`: run a graph on a cluster whose GPU is declared, but not there.

It has two CPUs, one GPU and one "fast_disk". Prints what Ray's object store has taken in while the graph ran.
"""

import json
import os
import secrets
import sys
import tempfile
from pathlib import Path

from runners.cli import run as runners
from runners.runtime.environment import ALLOW_CPU


def main() -> None:
    # Not at the top: whoever imports this for the environment must not load Ray, which reads its settings then.
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # of a worker that a test was; Ray would count the GPU out
    with tempfile.TemporaryDirectory(prefix="bx-", dir="/tmp") as folder:
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=1,
            resources={"fast_disk": 1},
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 << 20,
            _temp_dir=str(Path(folder)),
        )
        code = runners.main([sys.argv[1], "--store", sys.argv[2], "--plain"])
        stats = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address)).store_stats
        ray.shutdown()
    print(json.dumps({"code": code, "bytes": stats.cumulative_created_bytes}))


ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    ALLOW_CPU: "1",
}

if __name__ == "__main__":
    main()
