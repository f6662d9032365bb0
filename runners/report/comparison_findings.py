"""What a comparison of experiments says, in sentences that are computed from its numbers, and what it cannot say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from runners.report.collect import SERIES
from runners.report.comparison import Group, Size, Study
from runners.report.differences import Difference, differences
from runners.report.findings import UNITS, listed, name_of
from runners.report.format import number

_MOST_SENTENCES = 7  # about single groups; of more there are counts
_MOST_WINNERS = 3


def outcome(study: Study) -> str:
    """One sentence for the top of the page, and how much is missing."""
    sentence = _headline(study)
    count = len(study.missing)
    if not count:
        return sentence
    cells = sum(len({row.cell for row in trial.results.rows}) for trial in study.trials) + count
    return f"{sentence} {count} of {cells} results {'is' if count == 1 else 'are'} missing."


def findings(study: Study) -> list[str]:
    """What else the numbers say: the main measure in full, then each other measure."""
    if not study.measures:
        return []
    main, *others = study.measures
    found = [_best(study, main), *_against_references(study, main), _seeds(study, main)]
    found += [_against_baseline(study, main, name) for name in ("naive_pruning", "standard_distillation")]
    for measure in others:
        found += [_best(study, measure), *_against_references(study, measure)]
    found += [_otherwise(study, measure) for measure in study.measures]
    found += [
        f"{group} has no results of its own, so the others are compared with {other}."
        for group, other in study.stand_ins.items()
    ]
    found += [_one_seed(study)]
    headline = _headline(study)
    return [sentence for sentence in dict.fromkeys(found) if sentence and sentence != headline]


def _headline(study: Study) -> str:
    if not study.measures:
        return "There are no results."
    main = study.measures[0]
    candidates = [_best(study, main), *_against_references(study, main), _seeds(study, main)]
    fallback = f"No two experiments can be compared on {_name(study, main)}."
    return next((sentence for sentence in candidates if sentence), fallback)


def ranked(study: Study, measure: str) -> dict[Size, list[Group]]:
    """The groups from best to worst mean, at every size of the family that is asked of all of them.

    Only groups that were measured with the same as the first one; sizes at which all share one artifact are left out.
    Where the result of one is missing, the others are ranked.
    """
    metric = study.primary(measure)
    sign = -1.0 if study.higher_is_better(measure) else 1.0
    with_results = [group for group in study.groups if group.points(measure, metric)]
    groups = [group for group in with_results if group.yardsticks(measure) == with_results[0].yardsticks(measure)]
    points = {group.label: group.points(measure, metric) for group in groups}
    common = frozenset.intersection(*(group.asked for group in groups)) if len(groups) > 1 else frozenset()
    there = {size: [group for group in groups if size in points[group.label]] for size in sorted(common)}
    order = {size: sorted(own, key=lambda group: sign * points[group.label][size].mean) for size, own in there.items()}
    return {size: found for size, found in order.items() if len({points[g.label][size].artifacts for g in found}) > 1}


def _best(study: Study, measure: str) -> str | None:
    """Which of at least three groups is best at how many sizes, and how surely it leads."""
    order = ranked(study, measure)
    counts = {len(groups) for groups in order.values()}
    if max(counts, default=0) < 3:
        return None
    metric, total, many = study.primary(measure), len(order), _counted(counts)
    winners = [_winner(groups, size, measure, metric) for size, groups in order.items()]
    wins = Counter(winner for winner in winners if winner is not None).most_common()
    ties = winners.count(None)
    parts = [
        f"{label} {'is best of ' + many + ' ' if not i else ''}at {_of_sizes(count, total) if not i else count}"
        for i, (label, count) in enumerate(wins[:_MOST_WINNERS])
    ]
    if more := sum(count for _, count in wins[_MOST_WINNERS:]):
        parts.append(f"others at {more}")
    if ties:
        parts.append(f"the best of {many} tie at {_of_sizes(ties, total) if not wins else ties}")
    sentence = f"On {_name(study, measure)}, {', '.join(parts)}"
    if not wins:
        return f"{sentence}."
    clear = sum(_lead(study, measure, size, groups) for size, groups in order.items())
    where = {0: "none of them", total: "every one of them"}.get(clear, f"{clear} of them")
    beyond = "more than two standard errors of the items" if study.seeds[1] == 1 else "beyond the spread over seeds"
    return f"{sentence}; the lead over the second best is {beyond} at {where}."


def _winner(groups: Sequence[Group], size: Size, measure: str, metric: str) -> str | None:
    """The best group; None where the best two are equal."""
    first, second = (group.points(measure, metric)[size].mean for group in groups[:2])
    return None if first == second else groups[0].label


def _of_sizes(count: int, total: int) -> str:
    if count < total:
        return f"{count} of {total} sizes"
    return {1: "the one size", 2: "both sizes"}.get(total, f"all {total} sizes")


def _lead(study: Study, measure: str, size: Size, groups: Sequence[Group]) -> bool:
    found = differences(study, groups[0], groups[1], measure)
    return any(difference.clear for difference in found if difference.size == size)


def _against_references(study: Study, measure: str) -> list[str]:
    """Each group against the file's own experiment; counts only where there are many."""
    pairs = [(group, other) for group in study.groups if (other := study.reference(group)) is not None]
    compared = [(group, other, differences(study, group, other, measure)) for group, other in pairs]
    compared = [entry for entry in compared if entry[2]]
    if len(compared) <= _MOST_SENTENCES:
        return [_against(study, group, other, found, measure) for group, other, found in compared]
    better, worse = (sum(_everywhere(found, sign) for _, _, found in compared) for sign in (1, -1))
    names = {other.label for _, other, _ in compared}
    what = next(iter(names)) if len(names) == 1 else "base at the same point"
    sentence = (
        f"Of {len(compared)} compared with {what} on {_name(study, measure)}, {better} "
        f"{'is' if better == 1 else 'are'} clearly better at every size and {worse} clearly worse at every size."
    )
    return [sentence]


def _everywhere(found: Sequence[Difference], sign: int) -> bool:
    own = [difference for difference in found if not difference.same]
    return bool(own) and all(sign * difference.gain > 0 and difference.clear for difference in own)


def _against(study: Study, group: Group, other: Group, found: Sequence[Difference], measure: str) -> str:
    """ "no-kl is worse than base at 4 of 5 sizes on ..., by 0.010 to 0.031 nats per token; ..."."""
    own = [difference for difference in found if not difference.same]
    name = _name(study, measure)
    if not own:
        return f"{group.label} and {other.label} are the same artifacts on {name}: nothing that it measures differs."
    better, worse = [d for d in own if d.gain > 0], [d for d in own if d.gain < 0]
    if not better and not worse:
        return f"{group.label} and {other.label} do not differ on {name} at any of {len(own)} sizes."
    first, second = (better, worse) if len(better) > len(worse) else (worse, better)
    word, opposite = ("better", "worse") if first is better else ("worse", "better")
    where = _of_sizes(len(first), len(own))
    sentence = f"{group.label} is {word} than {other.label} at {where} on {name}, by {_amount(study, first, measure)}"
    if equal := len(own) - len(first) - len(second):
        sentence += f"; equal at {equal}"
    if second:
        sentence += f"; {opposite} at {listed([d.size.layers for d in second])} layers, by "
        sentence += _amount(study, second, measure)
    return f"{sentence}."


def _amount(study: Study, found: Sequence[Difference], measure: str) -> str:
    """The smallest and largest difference, and how many are clear."""
    gains = sorted(abs(difference.gain) for difference in found)
    low, high = number(gains[0]), number(gains[-1])
    amount = " ".join(part for part in (low if low == high else f"{low} to {high}", _unit(study, measure)) if part)
    counts = {len(difference.gains) for difference in found}
    if all(d.items is None and d.interval is None for d in found):
        return f"{amount} (one seed, and no standard error)"
    clear = sum(difference.clear for difference in found)
    many = {0: "none", len(found): "all"}.get(clear, f"{clear} of them")
    beyond = "two standard errors of the items" if counts == {1} else f"the spread over {_counted(counts)} seeds"
    if len(found) == 1:
        return f"{amount} ({'more' if clear else 'less'} than {beyond})"
    return f"{amount} ({many} by more than {beyond})"


def _counted(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _seeds(study: Study, measure: str) -> str | None:
    """How far the seeds of a group lie apart."""
    points = [point for group in study.groups for point in study.points(group, measure).values()]
    repeated = [point.values for point in points if len(point.values) > 1]
    if not repeated:
        return None
    spans = [max(values) - min(values) for values in repeated]
    unit = _unit(study, measure)
    return (
        f"Between the seeds of one experiment, {_name(study, measure)} at one size spans {number(min(spans))} to "
        f"{number(max(spans))}{f' {unit}' if unit else ''} ({_counted({len(v) for v in repeated})} seeds; "
        f"the median span is {number(float(np.median(spans)))})."
    )


def _against_baseline(study: Study, measure: str, baseline: str) -> str | None:
    """At how many interpolated sizes each group beats its own baseline of that size, by means over seeds."""
    sign = 1.0 if study.higher_is_better(measure) else -1.0
    parts: list[str] = []
    for group in study.groups:
        family, others = study.points(group, measure), study.points(group, measure, baseline)
        common = _interpolated(group, measure) & family.keys() & others.keys()
        if common:
            won = sum(sign * (family[size].mean - others[size].mean) > 0 for size in common)
            parts.append(f"{group.label} at {won} of {len(common)}")
    if not parts or len(parts) > _MOST_SENTENCES:
        return None
    return f"Interpolated sizes beat {SERIES[baseline]} on {_name(study, measure)}: {', '.join(parts)}."


def _interpolated(group: Group, measure: str) -> set[Size]:
    return {
        trial.sizes[row.cell]
        for trial in group.trials
        for row in trial.results.rows
        if row.measure == measure and row.cell.series == "interpolated"
    }


def _otherwise(study: Study, measure: str) -> str | None:
    """Groups that were measured with something else than the first."""
    groups = [group for group in study.groups if group.yardsticks(measure)]
    others = [group.label for group in groups if group.yardsticks(measure) != groups[0].yardsticks(measure)]
    if not others:
        return None
    names = others[:_MOST_WINNERS] + ([f"{len(others) - _MOST_WINNERS} more"] if len(others) > _MOST_WINNERS else [])
    what = "other held-out text" if measure == "held_out" else "another form of the task"
    return (
        f"Not compared on {_name(study, measure)}: {', '.join(names)} "
        f"{'was' if len(others) == 1 else 'were'} measured on {what} than {groups[0].label}."
    )


def _one_seed(study: Study) -> str | None:
    if study.seeds[1] > 1 or len(study.groups) < 2:
        return None
    return "There is one seed of each experiment: what another seed would give is not known."


def _name(study: Study, measure: str) -> str:
    return name_of(measure, study.primary(measure))


def _unit(study: Study, measure: str) -> str:
    return UNITS.get(study.primary(measure), "")
