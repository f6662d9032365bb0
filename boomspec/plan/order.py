"""In which order tasks that could start do start: first those with the most work from them to the end of the graph.

Work is counted in operations, as far as costs are known. A task whose operations are not known counts as the largest
known one of its kind; what that leaves equal is decided by what kinds of tasks usually take.
"""

from __future__ import annotations

from collections import defaultdict

from boomspec.core.graph import Node, TaskGraph


def longest_first(graph: TaskGraph) -> list[str]:
    """The ids of all tasks, those on the longest remaining path first; equals in the order of the graph."""
    largest: dict[str, int] = defaultdict(int)
    for node in graph.nodes.values():
        largest[node.task.kind] = max(largest[node.task.kind], _operations(node))
    behind: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))  # the longest path behind a task
    remaining: dict[str, tuple[int, int]] = {}
    for task_id in reversed(graph.nodes):
        node, (operations, usual) = graph.nodes[task_id], behind[task_id]
        own = largest[node.task.kind] if node.cost is None or node.cost.unknown else node.cost.flops
        remaining[task_id] = operations + own, usual + node.task.record.usual_work
        for needed in graph.waits_for(task_id):
            behind[needed] = max(behind[needed], remaining[task_id])
    return sorted(graph.nodes, key=lambda task_id: remaining[task_id], reverse=True)


def _operations(node: Node) -> int:
    return 0 if node.cost is None else node.cost.flops
