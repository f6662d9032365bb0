"""Whether an error of a collective says that another worker is gone, or what is wrong here.

A group that lost a worker starts again; one whose settings are wrong would fail of them again and again. The name of a
library says nothing: NCCL and gloo report both. What counts is the kind of error, or what the wire has said. Messages
of NCCL: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html and torch's NCCLUtils.cpp.
"""

from __future__ import annotations

import re

import torch

# The end of a connection, as system, gloo and NCCL say it, and waiting in vain for another worker.
_LOST = re.compile(
    "|".join(
        [
            r"connection (was )?(closed|reset|refused|aborted|timed out)",
            r"(closed|reset) by (remote )?peer",
            r"broken pipe",
            r"no route to host",
            r"network is unreachable",
            r"remote peer closed the connection",
            r"application timeout caused pair closure",
            r"timed out waiting \d+ ?ms for (recv|send|unbound)",
            r"timed out in monitoredbarrier|rank \d+ (failed to pass|successfully reached) monitoredbarrier",
            r"watchdog caught collective operation timeout",
            r"operation timed out",
            r"ran for \d+ milliseconds before timing out",
            r"connectfullmesh failed",
            r"ncclremoteerror",  # also without a word of NCCL itself
            r"remote process exited or there was a network error",
            r"communicator was aborted",
            r"got completion from peer .* (with error|with status)",  # InfiniBand: nobody answers any more
            r"(socket|heartbeat|wait) timeout|timeout waiting for key",
        ]
    )
)
# Codes of what was asked for or of this worker's own GPU, whatever else stands beside them.
_OWN = re.compile("invalid ?usage|invalid ?argument|unhandled ?cuda ?error|cuda error|mismatch between collectives")
_REMOTE = "ncclremoteerror"
# What torch adds to every system error, without knowing: it may be either.
_EITHER = re.compile(r"it can be also caused by unexpected exit of a remote peer[^\n]*")
_LAST, _TRACE = "last error:", "exception raised from"


def lost_peer(error: BaseException) -> bool:
    """Whether a worker failed because another one is gone."""
    if not isinstance(error, RuntimeError):  # those of torch.distributed are
        return False
    said = str(error).lower()
    if isinstance(error, torch.distributed.DistNetworkError | torch.distributed.DistStoreError):
        return "address already in use" not in said  # else the meeting place is gone, or somebody did not come there
    code, _, last = said.partition(_TRACE)[0].partition(_LAST)
    if _OWN.search(code):
        return False
    if last.strip():  # what the library itself has seen
        return _REMOTE in code or bool(_LOST.search(last))
    return bool(_LOST.search(code)) or bool(_EITHER.search(code))
