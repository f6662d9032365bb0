"""GPUs by what their makers publish, and how much of that a task gets.

Peak rates are dense (no sparsity), in operations a second; fp32 is that of the plain units, which torch uses unless a
spec says `determinism: {tf32: true}`. A device without bf16 units computes bf16 at its fp32 rate at best.

Nothing reaches its peak. Of it this project counts on

    training      40 %: the share that well-tuned runs of this kind of model report (PaLM 46 %, arXiv 2204.02311;
                  Llama 3 38 to 43 %, arXiv 2407.21783, table 4), and the teacher's forward passes are no worse
    measuring     25 %: shorter sequences of many lengths, in smaller batches, without a backward pass to fill gaps

Rates that were measured (`boomspec.plan.rates`) come before these.
"""

from dataclasses import dataclass

from boomspec.core.errors import did_you_mean

TRAINING_SHARE, MEASURING_SHARE = 0.40, 0.25
_GB = 10**9


@dataclass(frozen=True)
class Device:
    """A kind of GPU. `seen_as`: parts of the names by which its driver calls it."""

    name: str
    seen_as: tuple[str, ...]
    bf16: float | None  # teraflops
    tf32: float | None
    fp32: float
    memory: int  # bytes

    def peak(self, *, bf16: bool, tf32: bool = False) -> float:
        """Operations a second."""
        rate = self.bf16 if bf16 and self.bf16 is not None else self.tf32 if tf32 else None
        return (self.fp32 if rate is None else rate) * 10**12


_TABLE = (
    Device("b200", ("B200",), 2250.0, 1125.0, 75.0, 180 * _GB),  # NVIDIA HGX/DGX B200 datasheet, one of eight
    Device("h200", ("H200",), 989.4, 494.7, 66.9, 141 * _GB),  # NVIDIA H200 datasheet, SXM
    # NVIDIA H100 Tensor Core GPU datasheet and Hopper whitepaper, SXM5
    Device("h100", ("H100",), 989.4, 494.7, 66.9, 80 * _GB),
    Device("mi300x", ("MI300X",), 1307.4, 653.7, 163.4, 192 * _GB),  # AMD Instinct MI300X data sheet
    # NVIDIA A100 datasheet, SXM
    Device("a100-80", ("A100-SXM4-80GB", "A100 80GB"), 312.0, 156.0, 19.5, 80 * _GB),
    Device("a100-40", ("A100-SXM4-40GB", "A100-PCIE-40GB"), 312.0, 156.0, 19.5, 40 * _GB),
    Device("l40s", ("L40S",), 362.05, 183.0, 91.6, 48 * _GB),  # NVIDIA L40S datasheet; the rates in front of the sparse
    # NVIDIA Ada and GA102 whitepapers, appendix A; bf16 with fp32 sums
    Device("rtx4090", ("RTX 4090",), 165.2, 82.6, 82.6, 24 * _GB),
    Device("rtx3090", ("RTX 3090",), 71.0, 35.6, 35.6, 24 * _GB),
    # NVIDIA V100 (SXM2, 32 GB) and T4 datasheets; no bf16, no TF32
    Device("v100", ("V100",), None, None, 15.7, 32 * _GB),
    Device("t4", ("Tesla T4", "NVIDIA T4"), None, None, 8.1, 16 * _GB),
)
DEVICES = {device.name: device for device in _TABLE}
SHOWN = ("h100", "a100-80", "l40s", "rtx4090")  # where a spec names none


def others(name: str) -> str:
    """What to write instead of a name that is not in the table."""
    close = did_you_mean(name.lower(), list(DEVICES))
    return f"{close + ' ' if close else ''}known are: {', '.join(DEVICES)}"


def device_seen_as(name: str) -> Device | None:
    """The device that a driver calls `name`: "NVIDIA H100 80GB HBM3"."""
    return next((device for device in _TABLE if any(part in name for part in device.seen_as)), None)
