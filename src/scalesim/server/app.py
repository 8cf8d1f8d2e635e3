"""The application: the table of routes, behind the gate."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from scalesim.engine.engine import Engine
from scalesim.errors import EngineClosedError
from scalesim.server import (
    admin,
    agents,
    chat,
    choose,
    completions,
    embeddings,
    envelope,
    hints,
    models,
    tokens,
    watch,
)
from scalesim.server.body import give_back
from scalesim.server.config import ServerConfig
from scalesim.server.endpoint import Endpoint
from scalesim.server.errors import ApiError, api_error, is_ours
from scalesim.server.gate import Gate, admission_of, status_of
from scalesim.server.hints import end_call
from scalesim.server.leaving import ClientGoneError
from scalesim.server.service import Service, log

_CLIENT_LEFT = 499  # as proxies count it
ROUTES: list[Endpoint] = [
    *chat.ENDPOINTS,
    *completions.ENDPOINTS,
    *embeddings.ENDPOINTS,
    *models.ENDPOINTS,
    *tokens.ENDPOINTS,
    *choose.ENDPOINTS,
    *hints.ENDPOINTS,
    *agents.ENDPOINTS,
    *envelope.ENDPOINTS,
    *watch.ENDPOINTS,
    *admin.ENDPOINTS,
]


def make_app(engine: Engine | Callable[[], Engine], config: ServerConfig) -> Starlette:
    """The ASGI application that serves ``engine``, or what the function ``engine`` returns: it is
    called when the server starts, on a thread, and until it has returned all calls are answered
    with 503. The application closes the engine when it stops."""
    service = Service(engine, config)
    table = [row for row in ROUTES if row.access != "admin" or config.admin_keys]
    browser_paths = [row.path for row in table if row.in_browser]
    open_paths = [row.path for row in table if row.access == "open"]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        start = asyncio.create_task(service.start())
        try:
            yield
        finally:
            start.cancel()
            await service.close()

    routes = [
        TableRoute(row.path, Answer(service, row), methods=list(row.methods)) for row in table
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.router.redirect_slashes, app.router.default = False, _no_path
    app.state.service = service
    # Without starlette's layers, which each message of a stream would pass: an ``Answer`` has an
    # answer to every error.
    app.middleware_stack = Gate(app.router, config, open_paths, browser_paths)
    return app


class TableRoute(Route):
    """A path of the table. Another method than the path's is answered in OpenAI's form."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = self.methods or set()
        if scope["method"] in methods:
            await self.app(scope, receive, send)
            return
        allowed = ", ".join(sorted(methods))
        message = f"{scope['method']} is not one of the methods here: {allowed}"
        error = ApiError(405, message, code="method_not_allowed", headers={"allow": allowed})
        await error.response()(scope, receive, send)


class Answer:
    """An ASGI application that answers one endpoint: access, a place in the queue, the handler, and
    every error in OpenAI's form."""

    def __init__(self, service: Service, endpoint: Endpoint) -> None:
        self._service, self._endpoint = service, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        begin_s = time.perf_counter()
        try:
            self._check_access(request)
            with self._place(request):
                response = await self._endpoint.handler(self._service, request)
                await response(scope, receive, send)
        except ClientGoneError:
            pass
        except Exception as error:
            self._note(error, request)
            if status_of(request) is not None:
                raise ConnectionAbortedError from None  # the server closes the connection
            answer = api_error(error, admission_of(request).request_id)
            await answer.response()(scope, receive, send)
        finally:
            took_s = time.perf_counter() - begin_s
            row, status = self._endpoint, status_of(request) or _CLIENT_LEFT
            self._service.metrics.answered(row.path, status, took_s, is_call=row.queued)
            give_back(self._service, request)
            end_call(self._service, request)

    def _check_access(self, request: Request) -> None:
        if self._endpoint.access == "admin" and not admission_of(request).is_admin:
            raise ApiError(403, "this route needs an admin key", code="not_allowed")

    def _place(self, request: Request) -> AbstractContextManager[object]:
        if not self._endpoint.queued:
            return nullcontext()
        if self._service.life.state != "starting":  # then a call waits, once its body is there
            self._service.life.check()
        tenant = admission_of(request).tenant
        return self._service.open if tenant is None else self._service.open.of(tenant)

    def _note(self, error: Exception, request: Request) -> None:
        """Faults of ours go to the log: where, and of what kind; never the message, which may hold
        a prompt. Without its engine, the server has failed."""
        if isinstance(error, EngineClosedError) and self._service.life.state == "ready":
            self._service.life.state = "failed"
        if is_ours(error):
            where = "".join(traceback.format_tb(error.__traceback__))
            name, id = type(error).__name__, admission_of(request).request_id
            log.error("%s in %s (request %s)\n%s", name, self._endpoint.path, id, where)


async def _no_path(scope: Scope, receive: Receive, send: Send) -> None:
    error = ApiError(404, "there is no such path here", code="not_found")
    await error.response()(scope, receive, send)
