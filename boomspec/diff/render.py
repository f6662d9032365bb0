"""Print a comparison as terminal text or Markdown, with identical differences grouped."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from boomspec.core.format import shown_seconds, with_unit
from boomspec.diff.compared import Diff, Pair
from boomspec.diff.results import THRESHOLD, Compared
from boomspec.plan.changes import Changes, Field, State, TaskChange, count, listed, shown

_MOST_TASKS, _MOST_NUMBERS = 40, 60
_CLASSES = {"results": "Changes results", "execution": "Execution only", "cosmetic": "Cosmetic"}
_STYLES = {"results": "bold yellow", "execution": "bold cyan", "cosmetic": "bold"}
_DIRECTIONS = {"better": "green", "worse": "red", "moved": "yellow"}
Rows = Sequence[Sequence[str | Text]]
_MARKS = {"changed": "~", "added": "+", "removed": "-"}
_DONE: dict[State, str] = {"changed": "done anew", "added": "new", "removed": "no longer made", "same": "the same"}


def _groups(diff: Diff) -> list[tuple[str, Pair]]:
    """One of the pairs that differ in the same fields and tasks, below the labels of all of them ("" for none)."""
    found: dict[tuple[object, ...], list[Pair]] = {}
    for pair in diff.pairs:
        changed = [(task.name, task.state) for task in pair.changes.tasks if task.state != "same"]
        if pair.changes.fields or changed:
            fields = [(field.path, repr(field.old), repr(field.new), field.kind) for field in pair.changes.fields]
            found.setdefault((*fields, *changed), []).append(pair)
    return [(listed(pair.new.label or pair.old.label for pair in pairs), pairs[0]) for pairs in found.values()]


def _consequence(field: Field, changes: Changes) -> str:
    if tasks := sum(field.name in task.fields for task in changes.tasks if task.state != "same"):
        return count(tasks, "task")
    return "" if field.exact else "by its section"


def _why(task: TaskChange, changes: Changes) -> str:
    """Why a task is not the same: its own fields, or the inputs that reach it."""
    own = [field.title for field in changes.fields if task.name in field.tasks]
    if own:
        return ("some of: " if task.some_of else "") + listed(own, most=3)
    if task.inputs:
        return f"its input {listed(task.inputs, most=1)}"
    return listed((difference.title for difference in task.own), most=3)


def _counted(changes: Changes) -> str:
    """12 done anew, 3 new, 1 no longer made, 25 the same."""
    states = Counter(task.state for task in changes.tasks)
    return ", ".join(f"{states[state]} {text}" for state, text in _DONE.items() if states[state])


def _effort(diff: Diff) -> str:
    """The cost of the tasks of the newer side that the store of the older one would not have."""
    parts, cost = [count(len(diff.anew), "task")], diff.effort
    least = "at least " if cost.unknown else ""
    if cost.flops:
        parts.append(f"{least}{with_unit(cost.flops)}")
    if cost.seconds is not None:
        parts.append(f"about {shown_seconds(cost.seconds)} on this machine")
    if cost.gpu_seconds:
        times = (f"{shown_seconds(seconds)} on {name}" for name, seconds in cost.gpu_seconds.items())
        parts.append(f"GPU time: {least}{' or '.join(times)}")
    return ", ".join(parts)


def _remarks(diff: Diff) -> Iterator[str]:
    """What has to be known to read the rest."""
    for side in (diff.old, diff.new):
        if side.problem is not None:
            first = side.problem.splitlines()[0].partition(". ")[0]
            yield f"{side.named} cannot be compiled here, so tasks are not compared: {first}"
        if side.note is not None:
            yield f"{side.named}: {side.note}"
    if any(pair.changes.waiting for pair in diff.pairs):
        yield "a side waits for a search: the tasks after it are not known yet, and not compared"
    for side, labels in ((diff.new, diff.added), (diff.old, diff.removed)):
        if labels:
            yield f"experiments of {side.named} alone: {listed(labels)}"


def _verdict(diff: Diff) -> str:
    fields = {(f.name, f.kind) for pair in diff.pairs for f in pair.changes.fields}
    if changing := sum(kind == "results" for _, kind in fields):
        return f"{count(changing, 'field')} that {'changes' if changing == 1 else 'change'} results."
    if any(pair.changes.changes_results for pair in diff.pairs):
        return "The same fields, but other tasks."
    if diff.added or diff.removed:
        return "Other experiments."
    return "They mean the same results." if fields else "They mean the same."


def _judged(results: Compared) -> str:
    total, moved = len(results.judged), len(results.moved)
    if not total:
        same = "; all numbers are of the same evaluations" if results.shared else ""
        return f"No results to compare{same}."
    expected = total * math.erfc(THRESHOLD / math.sqrt(2))
    chance = f" (of {total}, about {expected:.1f} do so by chance)" if total > 1 else ""
    return f"{moved} of {count(total, 'number')} moved by more than {THRESHOLD:g} standard errors{chance}."


def _sizes(pair: Pair, form: str) -> list[tuple[str, str, str]]:
    """Rows of label, old and new plan with its parameters, as `form` has them."""
    sides = [[form.format(**size) if size else "-" for size in (both.old, both.new)] for both in pair.sizes]
    return [(both.name, old, new) for both, (old, new) in zip(pair.sizes, sides, strict=True)]


def _numbers(diff: Diff, results: Compared) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Rows of model, measure, old, new, difference and direction; what moved comes first."""
    for moved in sorted(results.judged, key=lambda moved: not moved.moved):
        name = f"{moved.experiment}: {moved.model}" if len(diff.pairs) > 1 else moved.model
        difference = f"{moved.difference:+.3g}" + ("" if moved.stderr is None else f" ± {moved.stderr:.2g}")
        direction = {True: "better", False: "worse", None: "moved"}[moved.better]
        if not moved.moved:
            direction = "noise" if moved.difference else "same"
        yield name, f"{moved.measure} {moved.metric}", f"{moved.old:.4g}", f"{moved.new:.4g}", difference, direction


def _means(results: Compared) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows of model, measure, mean difference over the pairs, its range and its direction; what moved comes first."""
    for mean in sorted(results.means, key=lambda mean: not mean.moved):
        direction = (
            {True: "better", False: "worse", None: "moved"}[mean.better] if mean.moved else "no clear difference"
        )
        spread = f"{mean.lowest:+.3g} to {mean.highest:+.3g}"
        difference = f"{mean.difference:+.3g} ± {mean.stderr:.2g}"
        yield mean.model, f"{mean.measure} {mean.metric}", difference, spread, direction


def _pairs(results: Compared) -> str:
    counts = sorted({mean.pairs for mean in results.means})
    return f"{' to '.join(map(str, dict.fromkeys([counts[0], counts[-1]])))} pairs" if counts else ""


def print_diff(diff: Diff, console: Console, *, title: bool = True) -> None:
    """Print what differs, most important first."""
    if title:
        console.print(f"[bold]{escape(diff.old.named)}[/] -> [bold]{escape(diff.new.named)}[/]")
    console.print(escape(_verdict(diff)))
    for remark in _remarks(diff):
        console.print(f"[dim]{escape(remark)}[/]")
    for heading, pair in _groups(diff):
        if heading:
            console.print(f"\n[bold underline]{escape(heading)}[/]")
        _print_pair(pair, console)
    if diff.anew:
        console.print(f"\n[bold]To make what is new:[/] {_effort(diff)}")
    conditions = [(c.name, ", ".join(c.old), "->", ", ".join(c.new)) for c in diff.environment or ()]
    _print_table(console, conditions, "[bold]Environment[/]")
    if (results := diff.results) is None:
        return
    console.print(f"\n[bold]Results:[/] {_judged(results)}")
    means = [(*row[:-1], Text(row[-1], _DIRECTIONS.get(row[-1], "dim"))) for row in _means(results)]
    _print_table(console, means, f"[bold]Mean differences over {_pairs(results)}[/]", most=_MOST_NUMBERS)
    if means:
        console.print("\n[bold]Each[/]")
    rows = [
        (model, measure, old, "->", new, difference, Text(direction, _DIRECTIONS.get(direction, "dim")))
        for model, measure, old, new, difference, direction in _numbers(diff, results)
    ]
    _print_table(console, rows, most=_MOST_NUMBERS)
    for side, names in ((diff.old, results.only_old), (diff.new, results.only_new)):
        if names:
            console.print(f"{count(len(names), 'result')} of {side.named} alone", style="dim", markup=False)


def _print_pair(pair: Pair, console: Console) -> None:
    changes = pair.changes
    longest = max((len(field.title) for field in changes.fields), default=0)
    width = max(24, (console.width - longest - 28) // 2)  # beside the name, the arrow and the consequence
    for kind, heading in _CLASSES.items():
        fields = [
            (f.title, shown(f.old, width=width), "->", shown(f.new, width=width), _consequence(f, changes))
            for f in changes.fields
            if f.kind == kind
        ]
        _print_table(console, fields, f"[{_STYLES[kind]}]{heading}[/]")
    rows = [(label, a, "->", b) for label, a, b in _sizes(pair, "{plan} ({parameters:,} parameters)")]
    _print_table(console, rows, "[bold]Sizes[/]")
    changed = changes.of("changed", "added", "removed")
    if not changed:
        return
    console.print(f"\n[bold]Tasks:[/] {_counted(changes)}")
    first = [task for task in changed if not _follows(task, changes)]
    marked = [(_MARKS[task.state], task.name, Text(_why(task, changes), "dim")) for task in first]
    _print_table(console, marked, most=_MOST_TASKS)
    following: dict[str, list[str]] = {}  # the evaluations of one model in one: "evaluate student (held_out, arc_easy)"
    for name in (task.name for task in changed if task not in first):
        model, _, measure = name.rpartition(": ") if name.startswith("evaluate ") else (name, "", "")
        following.setdefault(model, []).append(measure)
    if following:
        named = (f"{model} ({', '.join(of)})" if any(of) else model for model, of in following.items())
        _print_table(console, [(f"and what needs them: {listed(named, most=_MOST_TASKS)}",)])


def _follows(task: TaskChange, changes: Changes) -> bool:
    """Whether no field forces a task that does not force one of its inputs already."""
    own = {field.name for field in changes.fields if task.name in field.tasks}
    above = {name for other in changes.tasks if other.name in task.inputs for name in other.fields}
    return bool(task.inputs) and own <= above


def _print_table(console: Console, rows: Rows, heading: str = "", *, most: int | None = None) -> None:
    """A table, indented, below its heading; nothing without rows."""
    if not rows:
        return
    if heading:
        console.print(f"\n{heading}")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    for i in range(len(rows[0])):
        table.add_column(overflow="fold", no_wrap=i == 0 and len(rows[0]) > 3)
    for row in rows[:most]:
        table.add_row("", *(Text(cell) if isinstance(cell, str) else cell for cell in row))  # no markup in a value
    console.print(table)
    if most is not None and len(rows) > most:
        console.print(f"  [dim]and {len(rows) - most} more (all of them with --json)[/]")


def markdown(diff: Diff) -> Iterator[str]:
    """Lines of Markdown as GitHub reads it."""
    yield f"### {_code(diff.old.named)} → {_code(diff.new.named)}"
    yield ""
    yield f"**{_verdict(diff)}**" + (f" To make what is new: {_effort(diff)}." if diff.anew else "")
    for remark in _remarks(diff):
        yield from ("", f"> {_plain(remark)}")
    for heading, pair in _groups(diff):
        if heading:
            yield from ("", f"#### {_plain(heading)}")
        yield from _pair_markdown(pair)
    if diff.environment:
        rows = [(c.name, _code(", ".join(c.old)), _code(", ".join(c.new))) for c in diff.environment]
        yield from _table("| environment | was | is |", "|---|---|---|", rows)
    if diff.results is not None:
        yield from ("", f"**Results:** {_judged(diff.results)}")
        means = [tuple(map(_plain, row)) for row in _means(diff.results)]
        head = f"| model | measure | mean over {_pairs(diff.results)} | range | |"
        yield from _table(head, "|---|---|--:|---|---|", means)
        numbers = [(_plain(name), _plain(measure), *rest) for name, measure, *rest in _numbers(diff, diff.results)]
        yield from _table("| model | measure | was | is | difference | |", "|---|---|--:|--:|--:|---|", numbers)


def _pair_markdown(pair: Pair) -> Iterator[str]:
    changes = pair.changes
    fields = [
        (_code(f.title), _code(shown(f.old)), _code(shown(f.new)), heading.lower(), _plain(_consequence(f, changes)))
        for kind, heading in _CLASSES.items()
        for f in changes.fields
        if f.kind == kind
    ]
    yield from _table("| field | was | is | class | |", "|---|---|---|---|---|", fields)
    yield from _table("| size | was | is |", "|---|---|---|", _sizes(pair, "`{plan}`, {parameters:,} parameters"))
    if changed := changes.of("changed", "added", "removed"):
        yield from ("", f"<details><summary>Tasks: {_counted(changes)}</summary>")
        tasks = [(_plain(task.name), task.state, _plain(_why(task, changes))) for task in changed]
        yield from _table("| task | | because of |", "|---|---|---|", tasks)
        yield from ("", "</details>")


def _table(head: str, rule: str, rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    yield from ("", head, rule, *lines) if lines else ()


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("`", "'").replace("\n", " ") + "`"


def _plain(text: str) -> str:
    for sign in "\\`*_<>|":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")
