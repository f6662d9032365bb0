"""The kind `search`: a choice of layers or of a patch order that needs data."""

from math import comb
from typing import Annotated, Any, Literal

from pydantic import Discriminator

from boomspec.core.layers import evenly_spaced, patchable, prefixes
from boomspec.core.tasks.record import Cost, Determinism, Precision, Prices, Record
from boomspec.core.types import Strict
from boomspec.core.work_sizes import HELD_LOGITS, HELD_STATES


class Calibration(Strict):
    """Windows of the training text on which a search measures: the first `sequences` of the seeded order."""

    sequences: int
    sequence_length: int
    seed: int
    isolate: Literal[True] | None = None  # documents of a row do not see each other


class PatchOrder(Strict):
    """Choose, for every number of patched blocks, which ones (arXiv 2607.08170). Inputs: teacher, student, tokens.

    klpatch: greedy; at each size the block whose patching leaves the smallest KL to the teacher.
    beam: the `width` best sets of each size are extended. exact: every subset of the patchable blocks.
    """

    type: Literal["patch_order"] = "patch_order"
    method: Literal["klpatch", "beam", "exact"]
    kept: tuple[int, ...]
    width: int | None = None
    direction: Literal["teacher_to_candidate", "candidate_to_teacher"]  # KL(first || second)
    positions: Literal["all", "last"]
    reduction: Literal["token_mean", "sequence_max"]

    def layer_runs(self, layers: int) -> tuple[int, int]:
        """Layers that are run on all calibration tokens, of a teacher of `layers`, and models whose head is applied.

        Upper bounds: every candidate counts in full. `runners/modeling/shared_forward.py` computes what candidates
        share once; tests/benchmarks/search.py measures what that saves (0.34 to 0.41 of the layers were left).
        """
        kept, blocks = len(self.kept), len(patchable(self.kept, layers))
        candidates = [self._candidates(blocks, patched) + 2 * (patched > 0) for patched in range(blocks)]
        longer = (layers - kept) / max(1, blocks)  # by the mean block
        run = sum(count * (kept + patched * longer) for patched, count in enumerate(candidates))
        return layers + round(run), 1 + sum(candidates)

    def guess(self, layers: int) -> dict[str, Any]:
        """What might be found, for a forecast of what follows: models of every number of patched blocks."""
        return {"sets": [list(blocks) for blocks in prefixes(patchable(self.kept, layers))]}

    def _candidates(self, blocks: int, patched: int) -> int:
        """Sets of patched blocks, without the two of the sequential orders that every size is compared with."""
        if self.method == "exact" or patched == 0:
            return comb(blocks, patched)
        width = 1 if self.method == "klpatch" else self.width or 1
        return min(comb(blocks, patched), min(width, comb(blocks, patched - 1)) * (blocks - patched + 1))


class LayerChoice(Strict):
    """Score the teacher's layers and keep `count` of them. Inputs: teacher, tokens.

    block_influence: BI_l = 1 - E[cos(x_l, x_{l+1})] (ShortGPT, arXiv 2403.03853); the highest are kept.
    cosine_greedy: layers are dropped one by one, each time the one whose absence leaves the final hidden
    state most similar to the teacher's.
    """

    type: Literal["layer_choice"] = "layer_choice"
    method: Literal["block_influence", "cosine_greedy"]
    count: int

    def layer_runs(self, layers: int) -> tuple[int, int]:
        if self.method == "block_influence":
            return layers, 0
        rounds = range(self.count + 1, layers + 1)  # in each, every layer but the first is left out once
        return layers + sum((left - 1) ** 2 for left in rounds), 0

    def guess(self, layers: int) -> dict[str, Any]:
        return {"kept": list(evenly_spaced(self.count, layers)), "scores": [0.0] * layers}


class RunDistances(Strict):
    """How far the state moves over each run of following layers, by angle and by cosine. Inputs: teacher, tokens."""

    type: Literal["run_distances"] = "run_distances"
    positions: Literal["all", "last"]

    def layer_runs(self, layers: int) -> tuple[int, int]:
        return layers, 0

    def guess(self, layers: int) -> dict[str, Any]:
        alike = [[0.0] * (layers - length + 1) for length in range(1, layers + 1)]
        return {"angular_distance": alike, "block_influence": alike}


class Search(Record):
    """A choice that needs data. Writes `search.json`; the compiler reads it and goes on with integers."""

    kind, version = "search", 1
    usual_work = 100

    choice: Annotated[PatchOrder | LayerChoice | RunDistances, Discriminator("type")]
    calibration: Calibration
    precision: Precision
    determinism: Determinism | None = None

    def cost(self, prices: Prices) -> Cost:
        teacher, student, bf16 = prices.models["teacher"], prices.models.get("student"), self.precision == "bf16"
        width, length, sequences = 2 if bf16 else 4, self.calibration.sequence_length, self.calibration.sequences
        tokens = sequences * length
        memory = teacher.measuring(bf16=bf16, tokens=min(prices.batch_size, sequences) * length)
        runs, heads = self.choice.layer_runs(teacher.depth)
        if isinstance(self.choice, PatchOrder):
            measured = tokens if self.choice.positions == "all" else sequences
            heads *= measured
            logits, states = 2 * 4 * measured * teacher.vocabulary, tokens * teacher.hidden * width
            memory["head"] = memory.get("head", 0) + (logits if logits <= HELD_LOGITS else states)
            memory["states"] = min(HELD_STATES, states * len(patchable(self.choice.kept, teacher.depth)))
        if isinstance(self.choice, RunDistances):
            batch = min(prices.batch_size, sequences) * (length if self.choice.positions == "all" else 1)
            memory["states"] = (teacher.depth + 1) * teacher.hidden * width * batch
        work = runs * tokens * (teacher.forward(length) / teacher.depth) + heads * teacher.head()
        read = teacher.bytes
        if student is not None:
            memory["weights"] += student.parameters * width
            read += student.bytes
        return Cost(flops=round(work), memory=memory, read=read, tokens=tokens, real_tokens=tokens)
