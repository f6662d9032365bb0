"""A job server on loopback that has one job of boomspec, for Ray's real client; a test says what goes wrong with it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

JOB = "small-0123abcd-1"
_QUESTIONS = {
    ("GET", "/api/version"): "version",
    ("GET", "/nodes"): "nodes",
    ("GET", "/api/jobs/"): "jobs",
    ("POST", "/api/jobs/"): "submit",
    ("GET", f"/api/jobs/{JOB}"): "info",
    ("GET", f"/api/jobs/{JOB}/logs"): "logs",
    ("GET", f"/api/jobs/{JOB}/logs/tail"): "tail",
    ("POST", f"/api/jobs/{JOB}/stop"): "stop",
}

Trouble = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class JobServer:
    """It asks for no token. `troubles`: what comes instead of its answers to a question, in turn; None is the answer.

    The job has ended when its log was told to the end, or when it was stopped.
    """

    address: str = ""
    state: str = "RUNNING"
    log: str = ""
    troubles: dict[str, Iterator[Trouble | None]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        question = _QUESTIONS.get((request.method, request.path), request.path)
        self.asked.append(question)
        if trouble := next(self.troubles.get(question, iter(())), None):
            return await trouble(request)
        match question:
            case "version":
                return web.json_response({"version": "4", "ray_version": "2.60.0"})
            case "jobs":
                return web.json_response([self._job()])
            case "info":
                return web.json_response(self._job())
            case "submit":
                return web.json_response({"job_id": JOB, "submission_id": JOB})
            case "logs":
                return web.json_response({"logs": self.log})
            case "tail":
                socket = await told(request, self.log)
                self.state = "SUCCEEDED"
                return socket
            case "stop":
                self.state = "STOPPED"
                return web.json_response({"stopped": True})
        return web.json_response({})

    def _job(self) -> dict[str, object]:
        metadata = {"boomspec": "0.1.0", "name": "small", "graph": "0123abcd", "store": "/store"}
        known = {"type": "SUBMISSION", "submission_id": JOB, "entrypoint": "python", "metadata": metadata}
        return {**known, "status": self.state}


@contextmanager
def job_server() -> Iterator[JobServer]:
    server, loop = JobServer(), asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def told(request: web.Request, text: str) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    if text:
        await socket.send_str(text)
    return socket


def says(status: int, text: str) -> Trouble:
    async def trouble(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    return trouble


async def hangs_up(request: web.Request) -> web.StreamResponse:
    """As a tunnel does whose other end is down."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def breaks_after(seconds: float, text: str = "") -> Trouble:
    """Of "tail": it tells `text`, then nothing for so long, and is gone without a word."""

    async def trouble(request: web.Request) -> web.StreamResponse:
        await told(request, text)
        await asyncio.sleep(seconds)
        return await hangs_up(request)

    return trouble


async def talks_on(request: web.Request) -> web.StreamResponse:
    """Of "tail": it tells one line after the other."""
    socket = await told(request, "line\n")
    for number in itertools.count():
        if socket.closed:
            break
        await socket.send_str(f"line {number}\n")
        await asyncio.sleep(0.01)
    return socket
