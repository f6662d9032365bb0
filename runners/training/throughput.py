"""How fast a training goes: tokens a second, and model FLOPs utilisation (MFU).

MFU (PaLM, arXiv 2204.02311, appendix B) is the share of the devices' peak that goes into what the models need: for a
token 6 operations a weight of the student and 2 a weight of the teacher, attention and heads included
(`boomspec.core.model_costs`), times the real tokens a second. Padding does not count, nor what is computed again to
save memory.

These numbers depend on the machine and the hour. So they are part of the progress and of the provenance, never of the
artifact.
"""

import time
from collections import deque
from typing import Any

from runners.runtime.peak import Peak

_OVER_SECONDS = 30.0  # of the numbers that are shown while it trains


class Throughput:
    """Of one training, in this attempt. Its first step does not count: what it waits for, it waits for once."""

    def __init__(self, peak: Peak, *, workers: int = 1, flops_per_token: int = 0) -> None:
        self._peak, self._workers, self._flops_per_token = peak, workers, flops_per_token
        self._began = time.monotonic()
        self._done: deque[tuple[float, int, int]] = deque()  # when a step had ended, real tokens till then, all of them
        self._first: tuple[float, int, int] | None = None
        self._steps = 0
        self._left_out = 0.0

    def left_out(self, seconds: float) -> None:
        """So long something else was done than to train."""
        self._left_out += seconds

    def step_done(self, real: int, positions: int) -> None:
        """A step has ended with so many real tokens at so many positions, padding among these."""
        _, before, all_before = self._done[-1] if self._done else (0.0, 0, 0)
        now = time.monotonic() - self._left_out, before + real, all_before + positions
        self._first = self._first or now
        self._done.append(now)
        self._steps += 1
        while len(self._done) > 2 and now[0] - self._done[1][0] >= _OVER_SECONDS:
            self._done.popleft()

    def shown(self) -> dict[str, float | str]:
        """What is to be seen beside the loss terms, over the last half minute; nothing before the second step."""
        if len(self._done) < 2 or self._done[-1][0] <= self._done[0][0]:
            return {}
        (begin, before, all_before), (end, real, everything) = self._done[0], self._done[-1]
        rate = (real - before) / (end - begin)
        padded = real - before < everything - all_before  # the view itself shows how many positions a second are done
        values: dict[str, float | str] = {"real tokens/s": rate} if padded else {}
        mfu = self._mfu(rate)
        return values if mfu is None else {**values, "MFU": f"{mfu:.1%}"}

    def summary(self) -> dict[str, Any]:
        """Over all steps but the first, for the provenance; empty where no step was made."""
        if self._first is None:
            return {}
        begin, skipped = (self._first[0], self._first[1]) if self._steps > 1 else (self._began, 0)
        end, real, _ = self._done[-1]
        seconds, tokens = end - begin, real - skipped
        rate = tokens / seconds if seconds > 0 else None
        return {
            "steps": max(1, self._steps - 1),
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": rate,
            "flops_per_token": self._flops_per_token or None,
            "mfu": None if rate is None else self._mfu(rate),
            "device": self._peak.device,
            "workers": self._workers,
            "peak_flops": self._peak.flops,
            "peak_from": self._peak.origin,
        }

    def _mfu(self, rate: float) -> float | None:
        """From real tokens a second of all workers."""
        if not self._flops_per_token or self._peak.flops is None:
            return None
        return rate * self._flops_per_token / (self._peak.flops * self._workers)
