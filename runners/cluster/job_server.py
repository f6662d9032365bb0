"""Jobs of boomspec on a cluster, through Ray's job server: which there are, their states, their output.

A job is a run of one compiled graph: the driver works on the head of the cluster, whatever happens to the machine that
submitted it. Its metadata name the graph and the store; Ray keeps them, and shows them to all who have the token.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from boomspec.core import errors
from boomspec.core.errors import BoomspecError, did_you_mean, first_line, redact
from runners.cluster import access

_POLL_SECONDS = 0.5
_LOST_SECONDS = 2.0  # until a lost connection is made again
_PATIENCE_SECONDS = 60.0  # for a head that does not answer while it is busy, or restarts
_STOP_SECONDS = 120.0
_AGENT_SECONDS = 45.0
# Those of requests are OSErrors, some of aiohttp are neither, and answers of another shape are ValueErrors.
_FAILURES = (RuntimeError, OSError, ValueError, aiohttp.ClientError)
_NOISY = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")
_ENDED = re.compile(r"^\d\d:\d\d:\d\d +\[(\d+)/(\d+)\] +(.*)$", re.MULTILINE)  # as `runners.executor.view` prints it
_Answer = TypeVar("_Answer")


class NoAnswerError(BoomspecError):
    """The job server did not answer, or with an error: `reason`, in one line."""

    def __init__(self, reason: str) -> None:
        hint = "ask again in a while: its head may be busy, or restarting"
        super().__init__(f"no answer from the cluster's job server: {reason}", hint=hint)
        self.reason = reason


class Submission:
    """One job, as Ray's job server describes it. Times are seconds since 1970."""

    def __init__(self, job: Any) -> None:
        metadata = job.metadata or {}
        self.id: str = job.submission_id
        # pending, running, succeeded, failed or stopped
        self.state = str(getattr(job.status, "value", job.status)).lower()
        self.name, self.graph, self.store = (str(metadata.get(field, "")) for field in ("name", "graph", "store"))
        self.started = job.start_time / 1000 if job.start_time else None
        self.ended = job.end_time / 1000 if job.end_time else None
        self.exit_code: int | None = job.driver_exit_code  # where it has ended by itself
        self.message: str = job.message or ""

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @property
    def at_work(self) -> bool:
        return self.state in ("pending", "running")

    @property
    def run_folder(self) -> str:
        return f"{self.store}/runs/{self.name}-{self.graph[:8]}"

    @property
    def code(self) -> int:
        """The exit code of a command that waited for it: the run's own where there is one."""
        if self.state == "succeeded":
            return errors.EXIT_OK
        return errors.EXIT_INTERRUPTED if self.state == "stopped" else self.exit_code or errors.EXIT_RUN_FAILED

    @property
    def times(self) -> str:
        """Since when, and for how long; for people."""
        if self.started is None:
            return ""
        took = f", took {self.ended - self.started:.0f} s" if self.ended else ""
        return f"started {datetime.fromtimestamp(self.started):%Y-%m-%d %H:%M}{took}"

    @property
    def failure_hint(self) -> str | None:
        """What to do about a job whose program could not even be started."""
        unstarted = self.state == "failed" and (self.exit_code == 127 or "No module named" in self.message)
        return "name a python of the head that has ray and torch: --python /path/to/python" if unstarted else None


def connect(address: str, *, insecure: bool = False) -> tuple[Any, bool]:
    """Ray's client of a job server; whether that is open to all. Raises as `check_http`, and without a right token."""
    is_open = access.check_http(address, insecure=insecure)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)  # Ray would take the job to that cluster instead
    access.settle_token(is_open=is_open)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in _NOISY:
        logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)  # they print every upload and connection
    try:
        return JobSubmissionClient(address), is_open
    except AuthenticationError as error:
        raise access.unwelcome(address) from error
    except (*_FAILURES, KeyError, TypeError) as error:
        raise BoomspecError(f"what answers at {address} is no job server of Ray: {_reason(error)}") from error


def submit(client: Any, **job: Any) -> Submission:
    """Give a job to the cluster; returns its state. Raises BoomspecError where the cluster does not take it."""
    until = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            with _asking(client):
                taken = str(client.submit_job(**job))
            break
        except NoAnswerError as error:
            # A head that has just started has no agent yet, or never: that has one fixed port, and a second Ray on the
            # head's machine leaves the first one's jobs without it. Ray's own answer takes ten seconds.
            agentless = "No available agent" in str(error.__cause__)
            if agentless and time.monotonic() < until:
                continue
            hint = "start the head with --dashboard-agent-listen-port=PORT" if agentless else None
            raise BoomspecError(f"the cluster did not take it: {error.reason}", hint=hint) from error
    return _look(client, taken, hint=f"it has taken the job: boomspec status {taken}")


def submissions(client: Any) -> list[Submission]:
    """The jobs that boomspec has submitted, the newest first."""
    with _asking(client):
        known = client.list_jobs()
    found = [Submission(job) for job in known if "boomspec" in (job.metadata or {})]
    return sorted(found, key=lambda job: job.started or 0, reverse=True)


def chosen(client: Any, named: str) -> Submission:
    """A job by its id, or by the start of it where only one begins so. Raises BoomspecError where there is none."""
    jobs = submissions(client)
    found = [job for job in jobs if job.id == named] or [job for job in jobs if job.id.startswith(named)]
    if len(found) == 1:
        return found[0]
    ids = [job.id for job in found or jobs]
    known = f"there are: {', '.join(ids[:8])}{', ...' if len(ids) > 8 else ''}" if ids else "there are none"
    what = f"several jobs begin with '{named}'" if found else f"the cluster has no job '{named}' of boomspec"
    raise BoomspecError(what, hint=(None if found else did_you_mean(named, ids)) or known)


def log(client: Any, job: str) -> str:
    """The output of a job so far."""
    with _asking(client):
        return str(client.get_job_logs(job))


def progress(client: Any, job: Submission) -> dict[str, Any] | None:
    """How far a job is, by its output: tasks `done` of so many, and the last line; None where it says nothing yet."""
    lines = _ENDED.findall(log(client, job.id)) if job.at_work else []
    if not lines:
        return None
    done, tasks, last = lines[-1]
    return {"done": int(done), "tasks": int(tasks), "last": last}


def shown_progress(found: dict[str, Any] | None) -> str:
    """ "12/41 tasks; distill student: 24% after 0:57, 3:01 left"."""
    return "" if found is None else f"{found['done']}/{found['tasks']} tasks; {found['last']}"


def follow(client: Any, job: str, show: Callable[[str], None]) -> Submission:
    """Show the output of a job, from its beginning, until it has ended. A lost connection is made again."""
    shown, hint = 0, f"the job may go on: boomspec logs {job} --follow"

    def show_rest(text: str, start: int = 0) -> None:
        nonlocal shown
        rest = text[max(0, shown - start) :]
        shown = max(shown, start + len(text))
        show(rest)

    async def read() -> None:
        seen, texts = 0, client.tail_job_logs(job)
        while True:
            with _asking(client):
                text = await anext(texts, None)
            if text is None:
                return
            show_rest(text, seen)
            seen += len(text)

    while True:
        lost = True
        with suppress(NoAnswerError):  # a proxy may close quiet connections, or let none of this kind through
            asyncio.run(read())
            lost = False
        now = _look(client, job, hint=hint)
        if lost or not now.at_work:
            show_rest(_retried(lambda: log(client, job), hint=hint))
        if not now.at_work:
            return now
        time.sleep(_LOST_SECONDS if lost else _POLL_SECONDS)


def stop(client: Any, job: Submission) -> Submission:
    """Stop a job and wait until it has ended; its tasks write their checkpoints first. One that has ended stays so."""
    hint = f"look again: boomspec status {job.id}"
    with _asking(client):
        stopping = job.at_work and client.stop_job(job.id)
    until = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < until:
        now = _look(client, job.id, hint=f"it was told to stop; {hint}" if stopping else hint)
        if not (stopping and now.at_work):
            return now
        time.sleep(_POLL_SECONDS)
    raise BoomspecError(f"{job.id} was told to stop and has not yet", hint=hint)


def about(job: Submission, found: dict[str, Any] | None = None) -> Iterator[str]:
    """A job in a few lines, for people; `found`: how far it is."""
    yield f"{job.id}: {job.state}{job.times and ', ' + job.times}"
    if found is not None:
        yield f"now:   {shown_progress(found)}"
    yield f"store: {job.store}"
    yield f"run:   {job.run_folder}"
    if job.state == "failed" and job.message:
        yield redact(job.message)
        if job.failure_hint is not None:
            yield f"  hint: {job.failure_hint}"


def head_is_here(client: Any) -> bool:
    """Whether the head of the cluster is this machine: over a forwarded port "localhost" is another one."""
    with _asking(client):
        answer = client._do_request("GET", "/nodes?view=summary")
        if answer.status_code != 200:
            return False
        summary = answer.json().get("data", {}).get("summary", [])
    nodes = [node.get("raylet", {}) for node in summary]
    return any(Path(node.get("rayletSocketName", "")).is_socket() for node in nodes if node.get("isHeadNode"))


@contextmanager
def _asking(client: Any) -> Iterator[None]:
    """Around every call of Ray's client: its errors, and those of what it calls, become BoomspecErrors."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise access.unwelcome(client.get_address()) from error
    except _FAILURES as error:
        raise NoAnswerError(_reason(error)) from error


def _retried(ask: Callable[[], _Answer], *, hint: str) -> _Answer:
    """The answer of `ask`, which is asked again where there is none. (The extra `run` has no tenacity.)"""
    until: float | None = None
    while True:
        try:
            return ask()
        except NoAnswerError as error:
            until = until or time.monotonic() + _PATIENCE_SECONDS
            if time.monotonic() > until:
                raise BoomspecError(f"the cluster no longer answers: {error.reason}", hint=hint) from error
        time.sleep(_POLL_SECONDS)


def _reason(error: Exception) -> str:
    """Why something failed, in one line: of a traceback that the cluster sends, its last."""
    status, traceback, lines = access.reason(error).partition("Traceback (most recent call last):")
    last = [line for line in lines.splitlines() if line.strip(" .")][-1:]
    return first_line(status + "".join(last) if traceback else status)


def _look(client: Any, job: str, *, hint: str) -> Submission:
    def ask() -> Submission:
        with _asking(client):
            return Submission(client.get_job_info(job))

    return _retried(ask, hint=hint)
