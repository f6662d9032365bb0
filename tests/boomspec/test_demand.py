"""How large machines have to be: what runs on one at once, by the claims and the plan's estimates."""

import pytest

from boomspec.core.execution import Execution, TrainingOptions
from boomspec.core.graph import Cost
from boomspec.plan.demand import OBJECT_STORE, MachineRequirement, machine
from tests.boomspec.test_kuberay import graph

GIB = 1 << 30
BESIDE = 2 * GIB + OBJECT_STORE  # Ray itself and its objects
LIBRARIES = GIB  # of each process


def needs(gib: float) -> Cost:
    return Cost(memory={"weights": int(gib * GIB)})


def sized(*nodes: tuple[Execution, Cost | None], machines: int = 1, gpus: bool | None = None) -> MachineRequirement:
    found = machine(graph(*nodes), nodes=machines, gpus=gpus)
    assert found is not None
    return found


def test_as_many_tasks_as_there_are_cores_run_at_once_and_all_of_them_need_memory():
    one = sized((Execution(cpus=4), needs(1)))
    assert (one.cpus, one.memory) == (4, 1 * GIB + LIBRARIES + BESIDE)
    # The largest task needs four cores, on which four small ones run; there are six of them.
    many = sized((Execution(cpus=4), needs(1)), *[(Execution(), needs(8))] * 6)
    assert (many.cpus, many.memory) == (4, 4 * (8 * GIB + LIBRARIES) + BESIDE)
    few = sized((Execution(cpus=4), needs(1)), *[(Execution(), needs(8))] * 2)
    assert few.memory == 2 * (8 * GIB + LIBRARIES) + BESIDE


def test_what_is_claimed_is_claimable_and_limits_how_many_run_at_once():
    claimed = Execution(memory=10 * GIB)
    found = sized((Execution(cpus=8), needs(1)), *[(claimed, needs(8))] * 8)
    assert found.claimable >= 10 * GIB
    assert found.memory == 10 * GIB + LIBRARIES + BESIDE  # the second one waits until it may claim its memory
    # A claim below the estimate limits nothing.
    low = sized((Execution(cpus=8), needs(1)), *[(Execution(memory=GIB), needs(8))] * 8)
    assert low.memory == 8 * (8 * GIB + LIBRARIES) + BESIDE


@pytest.mark.parametrize(("machines", "each"), [(1, 4), (2, 2), (3, 2), (4, 1), (8, 1)])
def test_the_workers_of_a_training_are_spread_over_the_machines(machines, each):
    training = Execution(cpus=3, gpus=1, memory=30 * GIB, resources={"disk": 0.5}, training=TrainingOptions(workers=4))
    found = sized((training, needs(20)), machines=machines)
    assert (found.cpus, found.gpus) == (3 * each, each)
    assert found.resources == {"disk": 0.5 * each}
    assert found.memory == each * (30 * GIB + LIBRARIES) + BESIDE
    assert found.claimable >= each * 30 * GIB
    assert found.gpu_memory == 20 * GIB


def test_tasks_that_share_a_gpu_share_its_memory():
    quarter = Execution(gpus=0.25)
    assert sized((quarter, needs(3))).gpu_memory == 3 * GIB
    shared = sized((Execution(cpus=8, gpus=1), needs(4)), *[(quarter, needs(3))] * 9)
    assert shared.gpus == 1
    assert shared.gpu_memory == 4 * 3 * GIB
    assert shared.memory == 4 * (3 * GIB + LIBRARIES) + BESIDE  # four on the GPU, though there are eight cores
    thirds = sized(*[(Execution(gpus=0.3), needs(3))] * 9)
    assert thirds.gpu_memory == 3 * 3 * GIB


def test_a_custom_resource_limits_how_many_run_at_once():
    licensed = Execution(resources={"license": 1})
    found = sized((Execution(cpus=8), needs(1)), *[(licensed, needs(8))] * 8)
    assert found.resources == {"license": 1}
    assert found.memory == 8 * GIB + LIBRARIES + BESIDE


def test_what_cannot_be_told_gets_room():
    assert sized((Execution(), None)).memory == 8 * GIB + LIBRARIES + BESIDE
    assert sized((Execution(), Cost(unknown="experts"))).memory == 8 * GIB + LIBRARIES + BESIDE
    assert sized((Execution(), Cost(unknown="requests", memory={"weights": GIB}))).memory == GIB + LIBRARIES + BESIDE
    assert sized((Execution(), Cost())).memory == LIBRARIES + BESIDE  # a task that holds next to nothing


def test_one_kind_of_machine_has_room_for_every_task_and_two_kinds_for_their_own():
    tasks = (
        (Execution(cpus=2, gpus=1, resources={"fast": 2}), needs(30)),
        (Execution(cpus=6, resources={"fast": 1}), needs(50)),
    )
    both = sized(*tasks)
    assert (both.cpus, both.gpus, both.resources) == (6, 1, {"fast": 2})
    assert both.memory == 50 * GIB + LIBRARIES + BESIDE
    on_gpus, on_cpus = (sized(*tasks, gpus=gpus) for gpus in (True, False))
    assert (on_gpus.cpus, on_gpus.gpus, on_gpus.gpu_memory) == (2, 1, 30 * GIB)
    assert (on_cpus.cpus, on_cpus.gpus, on_cpus.gpu_memory) == (6, 0, 0)
    assert machine(graph(tasks[1]), nodes=1, gpus=True) is None
