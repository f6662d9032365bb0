"""`boomspec.family`: every size between a student and its teacher, as a Python object.

    family.sizes, family["80%"], family[-1], for size in family       sizes, which load nothing
    family["80%"].model, family.model("80%"), family.teacher          transformers models, loaded when asked for
    family.results, family.pareto("memory", "held_out")               what was measured, as DataFrames
    family.generate("...", size="80%")                                text

Sizes share the weights of teacher and student, each loaded once: changing a shared weight changes it in all of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import pandas as pd

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import Layer, LayerPlan, teacher_indices
from boomspec.core.sizes import Lineage, Member, labels
from boomspec.core.tasks import Cell
from boomspec.models.facts import ModelFacts, positions_of
from boomspec.models.kv_cache import layer_cache_bytes
from runners.api.origin import Origin
from runners.api.results import COSTS, Axis, axis_of, deployment_frame, pareto_frame, results_frame
from runners.api.sizes import CONTEXT, Size, Sizes
from runners.report.study import Study

if TYPE_CHECKING:  # sizes and results need no torch
    import torch
    from transformers import PreTrainedModel

    from runners.api.plot import Plot
    from runners.api.writing import Prompt
    from runners.modeling import family as modeling

_STUDENT = "student"


class Family(Sequence[Size]):
    """The sizes of one finished run, smallest first, with their results. Weights are read when a model is asked for."""

    def __init__(self, origin: Origin, *, dtype: "torch.dtype | str | None" = None) -> None:
        self._origin, self._dtype = origin, dtype
        names = labels(self.lineage.members)
        self._sizes = {member.plan: self._size(names[member.patched], member) for member in self.lineage.members}
        trained = self.lineage.trained  # by the published code's rule the smallest size may be another
        self._trained = self._sizes.get(trained.plan) or self._size(_STUDENT, trained)

    @property
    def name(self) -> str:
        return self._origin.name

    @property
    def lineage(self) -> Lineage:
        """Where teacher and student come from, which layers were kept, and the members as they were planned."""
        return self._origin.lineage

    @cached_property
    def sizes(self) -> Sizes:
        """Every size, smallest first; the last one is the teacher."""
        return Sizes(self._sizes.values())

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Size]:
        return iter(self.sizes)

    def __contains__(self, size: object) -> bool:
        """Whether it is one of its sizes, or a text that names one: "80%" in family."""
        if not isinstance(size, str):
            return any(size is one for one in (*self.sizes, self._trained))
        try:
            return self[size] is not None
        except BoomspecError:
            return False

    @overload
    def __getitem__(self, size: SupportsIndex | str) -> Size: ...
    @overload
    def __getitem__(self, size: slice) -> Sizes: ...
    def __getitem__(self, size: Any) -> Any:
        """A size by its name or number: "80%", "24 layers", "3B", "6GiB", "student", -1; of several by a slice.

        The largest size not above the one that is asked for is taken. Raises BoomspecError for what it does not have.
        """
        if isinstance(size, str):
            named = next((one for one in self.sizes if one.label == size), None)
            member = self.lineage.pick(size) if named is None else named.member
            return self._sizes.get(member.plan, self._trained)
        if isinstance(size, int) and not -len(self) <= size < len(self):
            raise IndexError(f"size {size}: this family has {len(self)}, 0 to {len(self) - 1}")
        return self.sizes[size]

    def __repr__(self) -> str:
        return f"{self.name}\n{self.sizes!r}"

    def _repr_html_(self) -> str:
        return self.sizes._repr_html_()

    # --- models -------------------------------------------------------------------------------------

    def model(self, size: "str | int | Size | Sequence[str | Layer]") -> "PreTrainedModel":
        """The transformers model of a size, or of a layer plan (["s0", "s1", "t4", ...]) that need not be a size.

        Where first and last layer of a plan have two owners, embedding and head do, too.
        """
        if isinstance(size, Size):
            return size.model
        return self[size].model if isinstance(size, str | int) else self._models.model(size)

    @property
    def teacher(self) -> "PreTrainedModel":
        return self._models.teacher

    @property
    def student(self) -> "PreTrainedModel":
        return self._models.student

    @cached_property
    def tokenizer(self) -> Any:
        """The teacher's: every size has it."""
        return self._origin.tokenizer()

    @cached_property
    def _models(self) -> "modeling.Family":
        return self._origin.shared(self._dtype)

    def _load(self, size: Size) -> "PreTrainedModel":
        """From shared weights where it has no others; else from its own folder."""
        try:
            return self._models.model(size.member)
        except BoomspecError:
            if (alone := self._origin.own(size.member, self._dtype)) is None:
                raise
            return alone

    # --- text ---------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: "Prompt", *, size: "str | int | Size", max_tokens: int = ..., chat: bool | None = ...,
        system: str | None = ..., template: Mapping[str, Any] | None = ..., stop: str | Sequence[str] | None = ...,
        temperature: float = ..., top_p: float | None = ..., top_k: int | None = ..., min_p: float | None = ...,
        presence_penalty: float | None = ..., repetition_penalty: float | None = ..., seed: int = ...,
    ) -> str: ...  # fmt: skip
    @overload
    def generate(
        self, prompt: "Prompt", *, size: None = None, max_tokens: int = ..., chat: bool | None = ...,
        system: str | None = ..., template: Mapping[str, Any] | None = ..., stop: str | Sequence[str] | None = ...,
        temperature: float = ..., top_p: float | None = ..., top_k: int | None = ..., min_p: float | None = ...,
        presence_penalty: float | None = ..., repetition_penalty: float | None = ..., seed: int = ...,
    ) -> dict[str, str]: ...  # fmt: skip
    def generate(
        self,
        prompt: "Prompt",
        *,
        size: "str | int | Size | None" = None,
        max_tokens: int = 128,
        chat: bool | None = None,
        system: str | None = None,
        template: Mapping[str, Any] | None = None,
        stop: str | Sequence[str] | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        presence_penalty: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
    ) -> str | dict[str, str]:
        """What one size writes behind a text; without `size`, what each of them writes, by its label.

        `prompt`: a text, or messages ([{"role": "user", "content": ...}]). `chat`: render it by the tokenizer's chat
        template, with a `system` prompt and variables of the `template` itself ({"enable_thinking": False}); by default
        messages are rendered and a text is not. `temperature`: 0 takes the most probable token each time; above it
        tokens are drawn by `seed`, the same numbers for every size. Penalties and cuts are those of evaluations
        (`boomspec.core.tasks.Generation`). The text ends before a `stop`, and has no special tokens. Raises
        BoomspecError for options that do not go together, and where the model has too few positions.
        """
        from runners.api.writing import settings_of, tokens_of, written  # torch

        settings = settings_of(
            stop, max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
            presence_penalty=presence_penalty, repetition_penalty=repetition_penalty,
        )  # fmt: skip
        tokens = tokens_of(self.tokenizer, prompt, chat=chat, system=system, template=template or {})
        if size is None:
            return {one.label: written(one.model, self.tokenizer, tokens, settings, seed) for one in self}
        chosen = size if isinstance(size, Size) else self[size]
        return written(chosen.model, self.tokenizer, tokens, settings, seed)

    # --- results ------------------------------------------------------------------------------------

    @property
    def results(self) -> pd.DataFrame:
        """What was measured, as the store holds it now: a row for each number, the report's results.csv.

        Columns: size, series (the family's student, interpolated, teacher, or a baseline), layers, parameters, bytes,
        measure, metric, value, stderr, higher_is_better, note.
        """
        return results_frame(self._study, self._label)

    @property
    def speed(self) -> pd.DataFrame:
        """Speed and memory where `evaluate.speed` has measured them: the report's deployment.csv, with the size."""
        return deployment_frame(self._study, "deployment", self._label)

    @property
    def texts(self) -> pd.DataFrame:
        """What models wrote where `evaluate.texts` has asked them: the report's texts.csv, with the size."""
        return deployment_frame(self._study, "texts", self._label)

    def pareto(self, *axes: str, context: int | None = None, batch: int = 1, dominated: bool = False) -> pd.DataFrame:
        """The sizes that no other one beats on all `axes` at once, by the first axis.

        An axis is a cost (layers, parameters, bytes, or memory: `Size.memory` of this `context` and `batch`), where
        less is better; a measure's primary metric ("gsm8k"); another one of its metrics ("gsm8k exact_match,flexible");
        or a metric of speed ("decode_tokens_per_second"). Those have directions of their own. One size beats another
        that it is at least as good as on every axis, and better on one. Sizes without a value are left out.

        `dominated`: all sizes that have values, each with the name of one that beats it. Raises BoomspecError for an
        axis that was not measured.
        """
        if not axes:
            raise BoomspecError("sizes are compared on at least one axis", hint='family.pareto("memory", "held_out")')
        found = self._axes(dict.fromkeys(axes), context, batch)
        return pareto_frame(found, list(self._labelled), self._labelled, every=dominated)

    def plot(self, across: str, upwards: str, *, context: int | None = None, batch: int = 1) -> "Plot":
        """One axis of all sizes against another, as `pareto` names them; a notebook shows it.

        `.save("figure")` writes PNG, SVG and PDF, `.spec` is the figure in Vega-Lite.
        """
        from runners.api.plot import plotted  # the converter of figures

        one, other = self._axes([across, upwards], context, batch)
        data = pareto_frame([one, other], list(self._labelled), self._labelled, every=True)
        return plotted(one, other, data.drop(columns="dominated_by", errors="ignore"))

    def _axes(self, names: Iterable[str], context: int | None, batch: int) -> list[Axis]:
        costs: dict[str, Callable[[Size], float]] = {name: attrgetter(name) for name in COSTS[:3]}
        costs[COSTS[3]] = lambda size: size.memory(context, batch)
        study = None if set(names) <= costs.keys() else self._study
        return [
            Axis(name, {label: costs[name](size) for label, size in self._labelled.items()}, higher=False)
            if study is None or name in costs
            else axis_of(study, name, self._label)
            for name in names
        ]

    @cached_property
    def _labelled(self) -> dict[str, Size]:
        return {size.label: size for size in (self._trained, *self.sizes)}

    @property
    def _study(self) -> Study:
        return self._origin.study()

    def _label(self, cell: Cell) -> str:
        """The size that a number is of. That of a baseline is named by its layers alone."""
        member = self._origin.measured(cell)
        size = None if member is None else self._sizes.get(member.plan, self._trained)
        return size.label if size is not None else f"{cell.layers} layers"

    # --- memory -------------------------------------------------------------------------------------

    def _size(self, label: str, member: Member) -> Size:
        share = member.parameters / self.lineage.members[-1].parameters
        return Size(label, member, share, load=self._load, cached_bytes=self._cached_bytes, write=self._written)

    def _written(self, size: Size, prompt: "Prompt", **options: Any) -> str:
        return self.generate(prompt, size=size, **options)

    def _cached_bytes(self, plan: LayerPlan, context: int | None, batch: int) -> int:
        most = positions_of(self._facts)
        if context is None:
            context = CONTEXT if most is None else min(CONTEXT, most)
        for name, count in {"context": context, "batch": batch}.items():
            if count < 1:
                raise BoomspecError(f"{name}={count}: at least 1 is allowed")
        if most is not None and context > most:
            raise BoomspecError(f"context={context:,}: the model has {most:,} positions")
        cached = layer_cache_bytes(self._facts, context=context, batch=batch)
        return sum(cached[layer] for layer in teacher_indices(plan, self.lineage.kept))

    @cached_property
    def _facts(self) -> ModelFacts:
        return self._origin.facts()
