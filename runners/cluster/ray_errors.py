"""Explain Ray's error of a task that has no outcome: its worker was lost, or something failed around its body.

Only the death of a process or of a machine is a lost worker. What is raised around a task's body (a job that cannot
be read there, packages that are missing, a file that cannot be written) would be raised by every other worker, too.
"""

from ray import exceptions
from ray.exceptions import RayError, RayTaskError

from boomspec.core.errors import BoomspecError, first_line, redact

_DEATHS = (
    exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.LocalRayletDiedError,
    exceptions.ObjectLostError, exceptions.OutOfMemoryError,
)  # fmt: skip


def describe_ray_error(error: RayError, *, attempts: int) -> str:
    """Why a task failed that gave no outcome. `attempts`: how often it has begun."""
    if isinstance(error, RayTaskError):
        cause = getattr(error.cause, "client_exc", error.cause)  # Ray wraps what was raised while it read the job
        own = f"{type(cause).__name__}: {first_line(cause)}".removesuffix(": ")
        return f"an error outside of the task's body: {redact(str(cause)) if isinstance(cause, BoomspecError) else own}"
    line = first_line(error) or type(error).__name__
    if isinstance(error, _DEATHS):
        return f"its worker was lost ({f'attempts: {attempts}' if attempts else 'before it began'}): {line}"
    if isinstance(error, exceptions.RuntimeEnvSetupError):
        return f"its environment could not be prepared: {redact(str(error).strip().splitlines()[-1].strip())}"
    if isinstance(error, exceptions.TaskUnschedulableError):
        return f"Ray could not place it: {line}"
    return f"Ray could not run it: {type(error).__name__}: {line}"


def trace(error: RayError) -> str:
    """All that is known, with the trace from the worker: for the task's log. Without secrets."""
    return redact(str(error).strip()) + "\n"
