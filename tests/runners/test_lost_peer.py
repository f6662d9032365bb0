"""Messages of gloo, NCCL and torch as users have met them: another worker is gone, or this group fails again."""

import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from boomspec.core.errors import BoomspecError
from runners.training.process_group import is_peer_failure

NCCL = "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1691, {}, NCCL version 2.21.5\n{}"
SYSTEM = (
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. It can "
    "be also caused by unexpected exit of a remote peer, you can check NCCL warnings for failure reason and see "
    "if there is connection closure by a peer."
)
GONE = "remote process exited or there was a network error"
REMOTE = "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
INTERNAL = "ncclInternalError: Internal check failed."
USAGE = "ncclInvalidUsage: This usually reflects invalid usage of NCCL library."
CUDA = "ncclUnhandledCudaError: Call to CUDA function failed."
TRACE = "\nException raised from getNCCLComm at ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1691"
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/{}] {}"


def nccl(short: str, code: str, last: str = "") -> DistBackendError:
    return DistBackendError(NCCL.format(short, code) + (f"\nLast error:\n{last}" if last else "") + TRACE)


LOST = [
    nccl(GONE, REMOTE, "socketProgress: Connection closed by remote peer n2<41>"),
    nccl(GONE, REMOTE),
    nccl(GONE, REMOTE, "NET/OFI Request 0x7f completed with error. RC: 113"),
    nccl("internal error", INTERNAL, "Net : Connection closed by remote peer user<50260>"),
    nccl("internal error", INTERNAL, "NET/IB : Got completion from peer 10.1.2.3<39138> with error 12, opcode 0"),
    nccl("unhandled system error", SYSTEM, "Call to recv from 10.0.0.3<33759> failed : Connection reset by peer"),
    nccl("unhandled system error", SYSTEM, "socketStartConnect: Connect to 10.0.0.3<4301> failed : Connection refused"),
    nccl("unhandled system error", SYSTEM),  # nothing else is known: tried again as often as workers may be lost
    DistBackendError("NCCL communicator was aborted on rank 0."),
    DistBackendError("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7) ran for 600 seconds"),
    RuntimeError(GLOO.format("pair.cc:547", "Connection closed by peer [10.0.0.4]:34210")),
    RuntimeError(GLOO.format("pair.cc:534", "Read error [::1]:53098: Connection reset by peer")),
    RuntimeError(GLOO.format("pair.cc:598", "writev [10.0.0.4]:2201: Broken pipe")),
    RuntimeError(GLOO.format("unbound_buffer.cc:81", "Timed out waiting 1800000ms for recv operation to complete")),
    RuntimeError("Application timeout caused pair closure"),
    RuntimeError("Gloo connectFullMesh failed with [..] timed out connecting: SO_ERROR: Connection timed out"),
    RuntimeError("Rank 1 failed to pass monitoredBarrier in 30000 ms"),
    DistStoreError("wait timeout after 600000ms, keys: /default_pg/0//cuda//1"),
    DistNetworkError("Connection reset by peer"),
    DistNetworkError("The client socket has timed out after 600000ms while trying to connect to (10.0.0.1, 29500)."),
]  # fmt: skip
OWN = [
    nccl("invalid usage (run with NCCL_DEBUG=WARN)", USAGE, "Duplicate GPU detected : rank 1 and rank 0 both on CUDA"),
    nccl("invalid usage", USAGE),
    nccl("invalid argument", "ncclInvalidArgument: Invalid value for an argument."),
    nccl("unhandled cuda error (run with NCCL_DEBUG=INFO)", CUDA, "Cuda failure 'no kernel image is available'"),
    nccl("unhandled cuda error", CUDA),
    nccl("unhandled cuda error", CUDA, "Cuda failure 2 'out of memory'"),
    nccl("unhandled system error", SYSTEM, "Error while creating shared memory segment /dev/shm/nccl-CsYXMW"),
    nccl("internal error", INTERNAL, "Bootstrap : no socket interface found"),
    nccl("internal error", INTERNAL),
    RuntimeError("NCCL error: invalid usage"),
    RuntimeError("ProcessGroupNCCL is only supported with GPUs, no GPUs found!"),
    RuntimeError("Distributed package doesn't have NCCL built in"),
    DistBackendError("NCCL version 2.10 is too old for coalesced collectives"),
    RuntimeError("Detected mismatch between collectives on ranks. Rank 0 is running collective: ALLREDUCE"),
    RuntimeError("ProcessGroupGloo::allreduce: unsupported layout"),
    RuntimeError("Cannot use ReduceOp.PREMUL_SUM with Gloo"),
    RuntimeError(GLOO.format("device.cc:83", "[enforce fail] ifa != nullptr. Unable to find address for: eth7")),
    RuntimeError(GLOO.format("pair.cc:446", "op.preamble.length <= op.nbytes. 8 vs 4")),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x4 and 5x6)"),
    DistNetworkError("The server socket has failed to listen on any local address: Address already in use"),
    BoomspecError("nccl is not built in: Connection closed by peer"),
    BrokenPipeError(32, "Broken pipe"),
]  # fmt: skip


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[-40:])
def test_a_peer_that_is_gone_is_recognised(error: Exception) -> None:
    assert is_peer_failure(error)


@pytest.mark.parametrize("error", OWN, ids=lambda error: str(error)[-40:])
def test_what_every_group_would_fail_of_is_no_lost_peer_whichever_library_says_it(error: Exception) -> None:
    assert not is_peer_failure(error)


def test_the_errors_of_this_torch_itself(tmp_path: Path) -> None:
    """A meeting to which nobody comes, one at an address that nobody has, one whose address is taken."""

    def raised(**options: object) -> BaseException:
        with pytest.raises(RuntimeError) as caught:
            torch.distributed.TCPStore(**options)
        return caught.value

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        waiting = timedelta(seconds=1)
        assert is_peer_failure(raised(host_name="127.0.0.1", port=port, is_master=False, timeout=waiting))
        silent.listen()
        assert not is_peer_failure(raised(host_name="127.0.0.1", port=port, is_master=True, timeout=waiting))
    store = torch.distributed.FileStore(str(tmp_path / "meeting"), 2)
    store.set_timeout(timedelta(milliseconds=200))
    with pytest.raises(RuntimeError) as caught:
        store.get("who comes?")
    assert is_peer_failure(caught.value)
