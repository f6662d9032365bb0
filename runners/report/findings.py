"""Write the sentences at the top of a page, computed from the numbers: what they show, and what they cannot show."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from runners.report.compare import ScoreDifference, against_references, baseline_gains, differences, ranked
from runners.report.format import number
from runners.report.study import SERIES, Group, Study

_ADJECTIVES = {"interpolated": "interpolated", "random_init": "randomly initialised"}
_OTHERS = ("shortgpt", "laco", "standard_distillation", "contiguous_drop", "contiguous_distilled", "linear_patch")
_MOST_SENTENCES = 7  # about single groups; of more there are counts
_MOST_WINNERS = 3


def outcome(study: Study) -> str:
    """One sentence for the top of the page, and how much is missing."""
    headline = _sentences(study)[0]
    without = [{missing.cell for missing in trial.missing} for trial in study.trials]
    count = sum(map(len, without))
    if not count:
        return headline
    cells = sum(len({row.cell for row in t.rows} | lost) for t, lost in zip(study.trials, without, strict=True))
    return f"{headline} {count} of {cells} results {'is' if count == 1 else 'are'} missing."


def findings(study: Study) -> list[str]:
    """What else the numbers say: the main measure in full, then each other measure."""
    headline, *others = _sentences(study)
    return [sentence for sentence in others if sentence != headline]


def _sentences(study: Study) -> list[str]:
    if not study.measures:
        return ["There are no results."]
    main, *others = study.measures
    if study.axes:
        first = [_best(study, main), *_against_references(study, main), _seeds(study, main)]
        rest = [_against_baseline(study, main, name) for name in ("naive_pruning", "standard_distillation")]
        for measure in others:
            rest += [_best(study, measure), *_against_references(study, measure)]
        rest += [_otherwise(study, measure) for measure in study.measures]
        rest += [
            f"{group} has no results of its own, so the others are compared with {other}."
            for group, other in study.stand_ins.items()
        ]
        if study.seeds[1] == 1 and len(study.groups) > 1:
            rest.append("There is one seed of each experiment: what another seed would give is not known.")
        nothing = f"No two experiments can be compared on {study.name(main)}."
    else:
        first = [_ends(study, main), _beats(study, main, "interpolated", "naive_pruning"), _between(study, main)]
        rest = [_steps(study, main)]
        rest += [_beats(study, main, "interpolated", name) for name in _OTHERS]
        rest += [_beats(study, main, "random_init", "naive_pruning")]
        for measure in others:
            rest += [_ends(study, measure), _beats(study, measure, "interpolated", "naive_pruning")]
        nothing = f"No interpolated size has a result on {study.name(main)}."
    headline = next((sentence for sentence in first if sentence), nothing)
    return [sentence for sentence in dict.fromkeys([headline, *first, *rest]) if sentence]


def _beats(study: Study, measure: str, series: str, against: str) -> str | None:
    """Which of two series wins at how many sizes, by how much, and how surely; None where nothing can be compared."""
    found = baseline_gains(study, measure, series=series, against=against)
    if not found:
        return None
    won, lost = [d for d in found if d.gain > 0], [d for d in found if not d.gain > 0]
    total, adjective = len(found), _ADJECTIVES[series]
    what = f"{SERIES[against]} on {study.name(measure)}"
    if _is_noise(found):
        sizes = f"the {adjective} size" if total == 1 else f"{adjective} sizes"
        sentence = f"No clear difference between {sizes} and {what}: {_at_most(study, found, measure)}"
    elif won:
        sentence = f"{_subject(len(won), total, adjective, 'beat')} {what}, by {_amount(study, won, measure)}"
        if lost:
            sentence += f"; behind at {_layers_by(study, lost, measure)}"
    else:
        subject = f"The one {adjective} size does not beat"
        subject = subject if total == 1 else f"None of the {total} {adjective} sizes beats"
        sentence = f"{subject} {what}: behind by {_amount(study, lost, measure)}"
    # Sizes between student and teacher at which a missing result keeps the two from being compared.
    trial, metric = study.trials[0], study.primary[measure]
    lacking = (m for m in trial.missing if m.concerns(measure, metric) and m.cell.series in (series, against))
    ends = {cell.layers for cell in trial.cells if cell.series in ("student", "teacher")}
    unknown = {m.cell.layers for m in lacking} - {d.size.layers for d in found} - ends
    return f"{sentence}; at {_listed(unknown)} layers a result is missing." if unknown else f"{sentence}."


def _ends(study: Study, measure: str) -> str | None:
    """That the teacher is no better than the student, where it is not: sizes between the two show nothing then."""
    trial, metric = study.trials[0], study.primary[measure]
    students, teachers = (trial.series(series, measure, metric) for series in ("student", "teacher"))
    if len(students) != 1 or len(teachers) != 1:
        return None
    pair = [(teachers[0], students[0])]
    found = ScoreDifference(teachers[0].size, study.sign(measure), pair, pair)
    if found.gain > 0 and not _is_noise([found]):
        return None
    values = f"{number(teachers[0].value)} against {number(students[0].value)}{study.unit(measure, ' ')}"
    better = "is no better than" if found.gain <= 0 else "is not clearly better than"
    return f"The teacher {better} the student on {study.name(measure)} ({values}): no gain is to be seen between them."


def _is_noise(found: Sequence[ScoreDifference]) -> bool:
    """Whether no difference is clear, of all of which it is known."""
    return all(d.items is not None or d.interval is not None for d in found) and not any(d.clear for d in found)


def _at_most(study: Study, found: Sequence[ScoreDifference], measure: str) -> str:
    largest = number(max(abs(difference.gain) for difference in found))
    counts = {len(difference.gains) for difference in found}
    noise = "two standard errors" if counts == {1} else f"the spread over {_counted(counts)} seeds"
    return f"at most {largest}{study.unit(measure, ' ')}, within {noise}"


def _between(study: Study, measure: str) -> str | None:
    trial, metric = study.trials[0], study.primary[measure]
    students, rows, teachers = (trial.series(s, measure, metric) for s in ("student", "interpolated", "teacher"))
    if not rows or len(students) != 1 or len(teachers) != 1:
        return None
    student, teacher = students[0].value, teachers[0].value
    inside = sum(min(student, teacher) <= row.value <= max(student, teacher) for row in rows)
    subject = _subject(inside, len(rows), "interpolated", "lie")
    ends = f"the student ({number(student)}) and the teacher ({number(teacher)})"
    return f"{subject} between {ends} on {study.name(measure)}."


def _steps(study: Study, measure: str) -> str | None:
    means = [point.mean for point in study.points(study.groups[0], measure).values()]
    if len(means) < 3:
        return None
    improved = sum(study.sign(measure) * (up - down) > 0 for down, up in pairwise(means))
    return f"From size to size upwards, {study.name(measure)} improves at {improved} of {len(means) - 1} steps."


def _best(study: Study, measure: str) -> str | None:
    """Which of at least three groups is best at how many sizes, and how surely it leads."""
    order = ranked(study, measure)
    counts = {len(groups) for groups in order.values()}
    if max(counts, default=0) < 3:
        return None
    total, many, wins, ties, clear = len(order), _counted(counts), Counter[str](), 0, 0
    for size, (first, second, *_) in order.items():
        tie = study.points(first, measure)[size].mean == study.points(second, measure)[size].mean
        wins.update([] if tie else [first.label])
        ties += tie
        clear += any(d.clear and d.size == size for d in differences(study, first, second, measure))
    (label, count), *others = wins.most_common() or [("", 0)]
    parts = [f"{label} is best of {many} at {_of_sizes(count, total)}"] if wins else []
    parts += [f"{label} at {count}" for label, count in others[: _MOST_WINNERS - 1]]
    if more := sum(count for _, count in others[_MOST_WINNERS - 1 :]):
        parts.append(f"others at {more}")
    if ties:
        parts.append(f"the best of {many} tie at {ties if wins else _of_sizes(ties, total)}")
    sentence = f"On {study.name(measure)}, {', '.join(parts)}"
    if not wins:
        return f"{sentence}."
    where = {0: "none of them", total: "every one of them"}.get(clear, f"{clear} of them")
    beyond = "more than two standard errors of the items" if study.seeds[1] == 1 else "beyond the spread over seeds"
    return f"{sentence}; the lead over the second best is {beyond} at {where}."


def _against_references(study: Study, measure: str) -> list[str]:
    """Each group against the file's own experiment; counts only where there are many."""
    compared = [entry for entry in against_references(study, measure) if entry[2]]
    if len(compared) <= _MOST_SENTENCES:
        return [_against(study, group, other, found, measure) for group, other, found in compared]
    own = [[d for d in found if not d.same] for _, _, found in compared]
    better, worse = (sum(bool(ds) and all(s * d.gain > 0 and d.clear for d in ds) for ds in own) for s in (1, -1))
    names = {other.label for _, other, _ in compared}
    what = names.pop() if len(names) == 1 else "base at the same point"
    clearly = f"{better} {'is' if better == 1 else 'are'} clearly better at every size and {worse} clearly worse"
    return [f"Of {len(compared)} compared with {what} on {study.name(measure)}, {clearly} at every size."]


def _against(study: Study, group: Group, other: Group, found: Sequence[ScoreDifference], measure: str) -> str:
    """ "no-kl is worse than base at 4 of 5 sizes on ..., by 0.010 to 0.031 nats per token; ..."."""
    own, name = [difference for difference in found if not difference.same], study.name(measure)
    if not own:
        return f"{group.label} and {other.label} are the same artifacts on {name}: nothing that it measures differs."
    better, worse = [d for d in own if d.gain > 0], [d for d in own if d.gain < 0]
    if not better and not worse:
        return f"{group.label} and {other.label} do not differ on {name} at any of {len(own)} sizes."
    if _is_noise(own):
        where = f"at {_of_sizes(len(own), len(own))}"
        amount = _at_most(study, own, measure)
        return f"No clear difference between {group.label} and {other.label} {where} on {name}: {amount}."
    ways = ("better", better), ("worse", worse)
    (word, first), (opposite, second) = ways if len(better) > len(worse) else ways[::-1]
    sentence = f"{group.label} is {word} than {other.label} at {_of_sizes(len(first), len(own))} on {name}"
    sentence += f", by {_amount(study, first, measure)}"
    if equal := len(own) - len(first) - len(second):
        sentence += f"; equal at {equal}"
    if second:
        sentence += f"; {opposite} at {_layers_by(study, second, measure)}"
    return f"{sentence}."


def _seeds(study: Study, measure: str) -> str | None:
    points = (point for group in study.groups for point in study.points(group, measure).values())
    repeated = [point.values for point in points if len(point.values) > 1]
    if not repeated:
        return None
    spans = [max(values) - min(values) for values in repeated]
    return (
        f"Between the seeds of one experiment, {study.name(measure)} at one size spans {number(min(spans))} to "
        f"{number(max(spans))}{study.unit(measure, ' ')} ({_counted({len(values) for values in repeated})} seeds; "
        f"the median span is {number(float(np.median(spans)))})."
    )


def _against_baseline(study: Study, measure: str, baseline: str) -> str | None:
    """At how many interpolated sizes each group beats its own baseline of that size, by means over seeds."""
    parts: list[str] = []
    for group in study.groups:
        family, others = study.points(group, measure), study.points(group, measure, baseline)
        rows = (row for row in group.rows if row.measure == measure and row.cell.series == "interpolated")
        if common := {row.size for row in rows} & family.keys() & others.keys():
            won = sum(study.sign(measure) * (family[size].mean - others[size].mean) > 0 for size in common)
            parts.append(f"{group.label} at {won} of {len(common)}")
    if not parts or len(parts) > _MOST_SENTENCES:
        return None
    return f"Interpolated sizes beat {SERIES[baseline]} on {study.name(measure)}: {', '.join(parts)}."


def _otherwise(study: Study, measure: str) -> str | None:
    groups = [group for group in study.groups if group.yardsticks(measure)]
    others = [group.label for group in groups if group.yardsticks(measure) != groups[0].yardsticks(measure)]
    if not others:
        return None
    names = others[:_MOST_WINNERS] + ([f"{len(others) - _MOST_WINNERS} more"] if len(others) > _MOST_WINNERS else [])
    what = "other held-out text" if measure == "held_out" else "another form of the task"
    return (
        f"Not compared on {study.name(measure)}: {', '.join(names)} "
        f"{'was' if len(others) == 1 else 'were'} measured on {what} than {groups[0].label}."
    )


def _amount(study: Study, found: Sequence[ScoreDifference], measure: str) -> str:
    """The smallest and largest difference, and how many are clear."""
    gains = sorted(abs(difference.gain) for difference in found)
    low, high = number(gains[0]), number(gains[-1])
    amount = (low if low == high else f"{low} to {high}") + study.unit(measure, " ")
    if not study.axes and any(d.items is None for d in found):
        return amount
    if all(d.items is None and d.interval is None for d in found):
        return f"{amount} (one seed, and no standard error)"
    counts, clear = {len(difference.gains) for difference in found}, sum(difference.clear for difference in found)
    beyond = "two standard errors of the items" if counts == {1} else f"the spread over {_counted(counts)} seeds"
    every, beyond = ("all", beyond) if study.axes else ("each", "two standard errors")
    if len(found) == 1:
        return f"{amount} ({'more' if clear else 'less'} than {beyond})"
    many = {0: "none", len(found): every}.get(clear, f"{clear} of them")
    return f"{amount} ({many} by more than {beyond})"


def _layers_by(study: Study, found: Sequence[ScoreDifference], measure: str) -> str:
    return f"{_listed(difference.size.layers for difference in found)} layers, by {_amount(study, found, measure)}"


def _subject(count: int, total: int, adjective: str, verb: str) -> str:
    """ "All 3 interpolated sizes beat", "1 of 3 interpolated sizes beats"."""
    if count < total:
        return f"{count} of {total} {adjective} sizes {verb}{'s' if count == 1 else ''}"
    if count == 1:
        return f"The one {adjective} size {verb}s"
    return f"{'Both' if count == 2 else f'All {count}'} {adjective} sizes {verb}"


def _of_sizes(count: int, total: int) -> str:
    if count < total:
        return f"{count} of {total} sizes"
    return {1: "the one size", 2: "both sizes"}.get(total, f"all {total} sizes")


def _counted(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _listed(numbers: Iterable[int]) -> str:
    *first, last = map(str, sorted(numbers))
    return f"{', '.join(first)} and {last}" if first else last
