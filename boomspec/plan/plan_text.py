"""A plan as text: every task with its action, the reason and its cost; totals; what does not fit.

Of several experiments a summary, by task kind and by axis, unless all tasks are asked for. Everything fits 80 columns;
wider terminals show ids and disk, too, and so do pipes and files. A reason stands below the first task that it holds
for.
"""

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from math import prod

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boomspec.compile.compiler import Compiled
from boomspec.compile.family import ResolvedFamily
from boomspec.core import format as shown
from boomspec.core.format import NOTHING, UNKNOWN, shown_count, shown_seconds
from boomspec.core.graph import Experiment, Node, TaskGraph
from boomspec.core.layers import TEACHER
from boomspec.core.sizes import compact_plan, shown_bytes
from boomspec.models.fit import described
from boomspec.plan.changes import listed
from boomspec.plan.forecast import Forecast, totals
from boomspec.plan.plan import RunPlan
from boomspec.plan.repetition import short_count, shown_times
from boomspec.plan.text_plan import BlendPlan, TextPlan, blend_plans, text_plans
from boomspec.plan.transfers import TransferPlan, transfer_plans
from boomspec.store import Store

_MARKS = {"reuse": ("green", "="), "run": ("yellow", "+"), "unneeded": ("dim", " "), "blocked": ("bold red", "!")}
_SUMS = (">FLOP", ">memory", ">disk", ">time")
_WIDE = 110  # columns
_PIPED = 160  # of what is no terminal, and so has no width
_MOST_TEXTS = _MOST_NAMES = 3
_MOST_VALUES = 12  # of an axis, one row each
_SOURCES = {
    "measured": "tasks of the same kind in this store",
    "calibration": "the calibration of this machine",
    "usual": "small tasks of the same kind in this store and common rates (--calibrate measures this machine's)",
    "table": "published peak rates, 40 % of them in training and 25 % in measuring",
}


def print_plan(
    compiled: Compiled,
    plan: RunPlan,
    forecast: Forecast,
    store: Store,
    whole: Forecast | None = None,
    *,
    every_task: bool = False,
) -> None:
    """All of it. `every_task`: a row for each task also where there are several experiments.

    whole: a forecast with what follows the searches, where there are any.
    """
    console = _console()
    graph = compiled.graph
    alike: dict[tuple[object, ...], list[str]] = defaultdict(list)  # labels of experiments whose sizes are the same
    for label, family in compiled.families.items():
        alike[tuple((m.plan, m.parameters, m.bytes, m.tied, m.asked) for m in family.members)].append(label)
    for label, *more in alike.values():
        others = f" and {len(more):,} more" if more else ""
        single = len(graph.experiments) == 1 or len(alike) == 1
        print_family(compiled.families[label], "Sizes" if single else f"Sizes of {label}{others}")
    texts = text_plans(graph, store)
    for text in texts[:_MOST_TEXTS]:
        _print_text(console, text)
    if len(texts) > _MOST_TEXTS:
        console.print(f"... and {len(texts) - _MOST_TEXTS:,} more texts")
    for blend in blend_plans(graph, store)[:_MOST_TEXTS]:
        _print_blend(console, blend)
    for transfer in transfer_plans(graph, store)[:_MOST_TEXTS]:
        _print_transfer(console, transfer)
    console.print(f"\n[bold]Tasks[/] (store: {store.address})", soft_wrap=True)
    if every_task or len(graph.experiments) == 1:
        _print_tasks(console, graph, plan, forecast)
    else:
        _print_kinds(console, graph, plan, forecast)
        _print_axes(console, graph, plan, forecast)
    total = forecast.totals
    console.print(f"\n{total.run} to run, {total.reuse} to reuse, {total.blocked} blocked.")
    if conditional := sum(step.if_inputs_differ for step in plan.steps.values()):
        console.print(f"{conditional} of those run only if their inputs, made again, come out otherwise than before.")
    if total.run:
        for line in _sentences(forecast):
            console.print(line)
    if total.run and forecast.devices:
        table = _table("on", ">GPU hours", ">until the end", "")
        for name, clock in forecast.devices.items():
            least = ">" if clock.without_a_time else ""
            hours, until = f"{least}{clock.gpu_seconds / 3600:.1f}", f"{least}{shown_seconds(clock.elapsed)}"
            fits = "[red]does not fit[/]" if any(f"{name} has" in warning for warning in forecast.warnings) else ""
            table.add_row(f"{forecast.machine.gpus:g} {name}", hours, until, fits)
        console.print()
        console.print(table)
    if compiled.pending:
        console.print(f"[bold]The rest is known after:[/] {', '.join(compiled.pending)} (a run goes on by itself)")
        if whole is not None:
            console.print(f"With the rest: {_whole(whole)}.")
    for warning in forecast.warnings:
        console.print(f"[bold red]warning:[/] {warning}")


def _console() -> Console:
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if has_width else _PIPED)


def print_family(family: ResolvedFamily, title: str = "Sizes") -> None:
    console = _console()
    asked = any(member.asked for member in family.members)
    table = _table(">layers", ">parameters", ">of teacher", ">weights", "", "plan", *["asked for"] * asked)
    table.title, table.title_justify = title, "left"
    for member in family.members:
        role = "student" if member.is_student else "teacher" if member.is_teacher else "interpolated"
        role += ", untied" if family.facts.tied and not member.tied else ""
        share = f"{member.parameters / family.members[-1].parameters:.1%}"
        sizes = [str(member.layers), f"{member.parameters:,}", share, shown_bytes(member.bytes)]
        table.add_row(*sizes, role, compact_plan(member.plan), *[", ".join(member.asked)] * asked)
    console.print(table)
    if (rest := described(family.facts, keep=family.rest)) is not None:
        console.print(rest, markup=False)
    if (cost := untied_cost(family)) is not None:
        console.print(cost, markup=False)


def untied_cost(family: ResolvedFamily) -> str | None:
    """What sizes with a head of their own cost, and how to avoid them; None where the teacher or all sizes are tied."""
    untied = [member for member in family.members if family.facts.tied and not member.tied]
    if not untied:
        return None
    head, last = prod(family.facts.token_embedding.shape), family.facts.count - 1
    fixes = []
    if last not in family.kept:
        fixes.append("keep the teacher's last layer (student.keep: last: 1)")
    elif family.every[0].plan[-1].owner == TEACHER:
        fixes.append("leave single layers to the student (interpolate.singletons: student)")
    if any(member.plan[0].owner == TEACHER for member in untied):
        fixes.append("patch from the last block to the first (interpolate.order: last_to_first)")
    return (
        f"The {len(untied)} untied sizes have a head beside the embedding, {shown_count(head)} parameters more "
        f"({head / family.members[-1].parameters:.0%} of the teacher): their first and last layer, whose parts these "
        f"are, have different owners. To avoid that: {', and '.join(fixes)}."
    )


def _print_text(console: Console, text: TextPlan) -> None:
    own = text.name.removeprefix("tokenize").strip()
    console.print(f"\n[bold]Text[/]{f' {escape(own)}' if own else ''}")
    if any(given.files is not None for given in text.given):
        table = _table("text", "", ">files", ">documents", ">bytes")
        for given in text.given:
            counts = [UNKNOWN if number is None else f"{number:,}" for number in (given.files, given.documents)]
            size = UNKNOWN if given.bytes is None else shown_bytes(given.bytes)
            table.add_row(escape(given.entry), "held out" if given.held_out else "", *counts, size)
        console.print(table)
    console.print(f"Documents begin {escape(text.begins)}.")
    if text.conversations is not None:
        learned = "the assistant's responses" if text.loss_on == "responses" else "all of them"
        console.print(f"Conversations ({escape(text.conversations)}); learned of them: {learned}.")
    _print_counts(console, text)
    if text.skipped:
        kinds = escape(", ".join(f"{count:,} {kind}" for kind, count in text.skipped.items()))
        console.print(f"{sum(text.skipped.values()):,} rows without text were skipped ({kinds}).")
    elif text.on_bad_row == "skip" and text.skipped is None:
        console.print("Rows without text will be skipped and counted.")


def _print_blend(console: Console, blend: BlendPlan) -> None:
    console.print(f"\n[bold]Text[/] {escape(blend.name)}")
    table = _table("part", ">share", ">documents", ">tokens", ">labelled", ">unlabelled")
    for part in blend.parts:
        others = None if part.tokens is None or part.labelled is None else part.tokens - part.labelled
        counts = (part.documents, part.tokens, part.labelled, others)
        shown_counts = (UNKNOWN if count is None else f"{count:,}" for count in counts)
        table.add_row(escape(part.name.removeprefix("tokenize").strip()), part.share, *shown_counts)
    console.print(table)
    _print_counts(console, blend)


def _print_counts(console: Console, text: TextPlan | BlendPlan) -> None:
    """How many tokens a text has, of which are learned, and how often trainings go through it."""
    if text.labelled is not None and text.unlabelled is not None and text.tokens is not None:
        counts = f"{text.labelled:,} are labels, {text.unlabelled:,} inputs only"
        console.print(f"Of {text.tokens:,} training tokens {counts}.")
    elif isinstance(text, BlendPlan) or text.loss_on == "responses":
        console.print("How many of its tokens are labels: known after it is made.")
    by_times: dict[str, list[str]] = defaultdict(list)
    estimated = text.expected_tokens is not None
    for name, times in text.passes.items():
        by_times[shown_times(times, estimated=estimated)].append(name)
    tokens = (
        shown_count(text.tokens or 0) if text.expected_tokens is None else f"about {short_count(text.expected_tokens)}"
    )
    for often, names in by_times.items():
        readers = escape(listed(names, most=_MOST_NAMES))
        console.print(f"Of {tokens} tokens, read {often} times by: {readers}.")


def _print_transfer(console: Console, transfer: TransferPlan) -> None:
    """The deltas by groups of tensors."""
    console.print(f"\n[bold]Deltas of {escape(transfer.name)}[/]")
    table = _table("group", ">weights", ">cosine", ">|added|", ">|of the variant|")
    for row in transfer.deltas:
        norms = (f"{row.transferred_norm:.4g}", f"{row.variant_norm:.4g}")
        table.add_row(row.group, f"{row.weights:,}", NOTHING if row.cosine is None else f"{row.cosine:.4f}", *norms)
    if transfer.deltas:
        console.print(table)
        whole = transfer.deltas[-1].weights
        if transfer.read is not None and transfer.read < whole:
            console.print(f"Estimated from {shown_count(transfer.read)} of these weights; the task reads all.")
    else:
        console.print(f"{UNKNOWN}: {escape(transfer.unknown or '')}")
    for warning in transfer.warnings:
        console.print(f"[bold red]warning:[/] {escape(warning)}")


def _table(*headings: str) -> Table:
    """A plain table. A ">" before a heading: the entries of its column are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        if heading.startswith(">"):
            table.add_column(heading[1:], justify="right", no_wrap=True, overflow="ellipsis")
        else:
            table.add_column(heading, overflow="fold")
    return table


def _print_tasks(console: Console, graph: TaskGraph, plan: RunPlan, forecast: Forecast) -> None:
    wide = console.width >= _WIDE
    table = _table("", "task", *["id"] * wide, ">FLOP", ">memory", *[">disk"] * wide, ">time")
    last = ""
    for node in graph.nodes.values():
        step, cost, time = plan.steps[node.id], forecast.costs[node.id], forecast.clock.durations.get(node.id)
        flops, memory, disk = shown.shown_cost(cost)
        numbers = [flops, memory, *[disk] * wide, UNKNOWN if time is None else shown_seconds(time.seconds)]
        style, mark = _MARKS[step.action]
        about = [f"[{style}]{mark} {step.action}[/]", node.name, *[f"[dim]{node.id[:12]}[/]"] * wide]
        table.add_row(*about, *(numbers if step.action == "run" else [""] * len(numbers)))
        if step.reason != last:
            table.add_row("", f"[dim]{step.reason}[/]")
            last = step.reason
    console.print(table)
    if not wide:
        console.print(f"[dim]Ids and disk of each task: in {_WIDE} columns, or with --json.[/]")


def _print_kinds(console: Console, graph: TaskGraph, plan: RunPlan, forecast: Forecast) -> None:
    uses = Counter(task for experiment in graph.experiments for task in set(experiment.tasks.values()))
    kinds: dict[str, list[Node]] = defaultdict(list)
    for node in graph.nodes.values():
        kinds[node.task.kind].append(node)
    table = _table("kind", ">tasks", ">run", ">reuse", ">shared", *_SUMS)
    for kind, nodes in kinds.items():
        run, *sums = _sums(nodes, plan, forecast)
        reused = sum(plan.steps[node.id].action == "reuse" for node in nodes)
        table.add_row(kind, f"{len(nodes):,}", run, f"{reused:,}", f"{sum(uses[n.id] > 1 for n in nodes):,}", *sums)
    console.print(f"{len(graph.experiments):,} experiments; a task that several share is counted once:")
    console.print(table)


def _print_axes(console: Console, graph: TaskGraph, plan: RunPlan, forecast: Forecast) -> None:
    values: dict[str, dict[str, list[Experiment]]] = defaultdict(lambda: defaultdict(list))
    for experiment in graph.experiments:
        for axis, value in experiment.axes.items():
            values[axis][value].append(experiment)
    table = _table("by axis", ">experiments", ">run", *_SUMS)
    for axis, by_value in values.items():
        if len(by_value) > _MOST_VALUES:
            table.add_row(f"{axis}: {len(by_value):,} values ({', '.join([*by_value][:2])}, ...)")
            continue
        for value, members in by_value.items():
            tasks = {task for member in members for task in member.tasks.values()}
            sums = _sums([graph.nodes[task] for task in tasks], plan, forecast)
            table.add_row(f"{axis}={value}", f"{len(members):,}", *sums)
    if table.row_count:
        console.print()
        console.print(table)


def _sums(nodes: list[Node], plan: RunPlan, forecast: Forecast) -> Iterator[str]:
    """Of some tasks those that run: how many, FLOP, memory of the largest worker, disk and time."""
    found = totals(nodes, forecast.costs, plan)
    known = [duration.seconds for node in nodes if (duration := forecast.clock.durations.get(node.id)) is not None]
    least = ">" if found.incomplete else ""
    yield f"{found.run:,}"
    yield f"{least}{shown.shown_flops(found.flops)}" if found.flops else UNKNOWN if least else NOTHING
    yield shown_bytes(found.largest_memory) if found.largest_memory else NOTHING
    yield shown_bytes(found.disk) if found.disk else NOTHING
    least = ">" if len(known) < found.run else ""
    yield f"{least}{shown_seconds(sum(known))}" if known else UNKNOWN if found.run else NOTHING


def _whole(forecast: Forecast) -> str:
    total, clock = forecast.totals, forecast.clock
    least = "at least " if total.incomplete else "about "
    took = (
        f"{'at least' if clock.without_a_time else 'about'} {shown_seconds(clock.elapsed)}" if clock.durations else ""
    )
    amounts = f"{least}{shown.with_unit(total.flops)}", f"{shown_bytes(total.disk)} of disk", *filter(None, [took])
    return f"up to {total.run:,} tasks to run, {', '.join(amounts)}"


def _sentences(forecast: Forecast) -> Iterator[str]:
    """The totals, and how long they take."""
    total, clock, on = forecast.totals, forecast.clock, forecast.machine
    least = "at least " if total.incomplete else ""
    meanwhile = f" and {shown_bytes(total.scratch)} of checkpoints meanwhile" if total.scratch else ""
    flops, memory = shown.with_unit(total.flops), shown_bytes(total.largest_memory)
    disk = f"{shown_bytes(total.disk)} of disk{meanwhile}"
    yield f"Together {least}{flops}, largest worker {memory} of memory, {disk}."
    if total.tokens:
        real = "the real ones among them known after tokenize"
        if total.real_tokens is not None:
            padding = 1 - total.real_tokens / total.tokens
            real = f"{shown_count(total.real_tokens)} real ({padding:.0%} padding)" if padding else "all of them real"
        yield f"Tokens through models: {least}{shown_count(total.tokens)}, {real}."
    if clock.durations:
        device = f" and {on.gpus:g} {on.device.name}" if on.device and forecast.devices else ""
        least = "at least " if clock.without_a_time else "about "
        many = "" if clock.without_a_time == 1 else "s"
        missing = f", {clock.without_a_time} task{many} without a time" if clock.without_a_time else ""
        work = (("GPU", clock.gpu_seconds), ("CPU", clock.cpu_seconds))
        hours = ", ".join(f"{seconds / 3600:.1f} {unit} hours" for unit, seconds in work if seconds >= 1)
        took = f"longest chain {shown_seconds(clock.longest_chain)}, {hours or 'less than a second of work'}{missing}"
        by = "; ".join(_SOURCES[source] for source in clock.sources)
        yield f"Time on {on.cpus:g} CPUs{device}: {least}{shown_seconds(clock.elapsed)} ({took}). By: {by}."
    elif forecast.devices:
        yield "Time: see below for kinds of GPU; name one as execution.device for more."
    else:
        yield "Time: not known yet on this machine; --calibrate measures it in about ten seconds."
    for reason, name in forecast.reasons.items():
        yield f"[dim]Not known beforehand: {reason} ({name}).[/]"
