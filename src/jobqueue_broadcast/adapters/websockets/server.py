"""A standalone server: `serve` runs a `WebSocketEndpoint` on a `websockets` server of its own."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Generator, Iterable, Sequence
from contextlib import AsyncExitStack
from importlib.resources import files
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as websockets_serve
from websockets.datastructures import Headers
from websockets.exceptions import NegotiationError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import (
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.http11 import Request, Response
from websockets.typing import ExtensionParameter

from jobqueue_broadcast.adapters.websockets.connections import WRITE_LIMIT
from jobqueue_broadcast.adapters.websockets.endpoint import WebSocketEndpoint
from jobqueue_broadcast.adapters.websockets.gate import ConnectionLimits
from jobqueue_broadcast.adapters.websockets.inflating import GuardedDeflate
from jobqueue_broadcast.adapters.websockets.redaction import redacted_logger
from jobqueue_broadcast.auth import Authenticate, Authorize
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.session import Cancel, SessionLimits, Submit

__all__ = ["BroadcastServer", "serve"]

# The page's own inline script and styles, and WebSockets back to where it came from.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class BroadcastServer:
    """A running server, as `serve` returns it.

    Attributes:
        broadcaster: What is broadcast.
        endpoint: The connections.
    """

    def __init__(
        self,
        broadcaster: EventBroadcaster,
        endpoint: WebSocketEndpoint,
        *,
        host: str | None,
        port: int | None,
        compression: bool,
        dashboard: bool,
        grace: float,
        arguments: dict[str, Any],
    ) -> None:
        self.broadcaster = broadcaster
        self.endpoint = endpoint
        self._host = host
        self._port = port
        self._grace = grace
        self._page = _dashboard_page() if dashboard else None
        self._arguments = arguments
        if compression:
            arguments["extensions"] = [_deflate_factory()]
        self._server: Server | None = None
        self._stack = AsyncExitStack()

    @property
    def port(self) -> int:
        """The TCP port, of the first socket if there are several."""
        return int(self._running().sockets[0].getsockname()[1])

    @property
    def sockets(self) -> Iterable[socket.socket]:
        """The listening sockets."""
        return self._running().sockets

    async def start(self) -> Self:
        """Bind the event loop and begin to listen."""
        await self._stack.enter_async_context(self.endpoint.running())
        try:
            self._server = await websockets_serve(
                self.endpoint.handle,
                self._host,
                self._port,
                process_request=self._process_request,
                create_connection=self.endpoint.connection_class,
                **self._arguments,
            )
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def close(self, grace: float | None = None) -> None:
        """Stop accepting, send what was broadcast, close everyone with 1001, leave nothing running.

        Args:
            grace: Seconds until who does not answer is aborted; by default what `serve` was given.
        """
        server, self._server = self._server, None
        if server is None:
            return
        server.close(close_connections=False)
        await self.endpoint.close(self._grace if grace is None else grace)
        await server.wait_closed()
        await self._stack.aclose()

    async def serve_forever(self) -> None:
        """Serve until cancelled, then close."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self.start().__await__()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _running(self) -> Server:
        if self._server is None:
            raise InvalidArgument("expected a server that is running")
        return self._server

    async def _process_request(
        self, websocket: ServerConnection, request: Request
    ) -> Response | None:
        if self._page is not None and request.path.partition("?")[0] == "/":
            return _page_response(self._page)
        return await self.endpoint.process_request(websocket, request)


def serve(
    broadcaster: EventBroadcaster,
    host: str | None = "localhost",
    port: int | None = 3331,
    *,
    authenticate: Authenticate | None = None,
    authorize: Authorize | None = None,
    submit: Submit | None = None,
    cancel: Cancel | None = None,
    allow_anonymous: bool = False,
    origins: Iterable[str] | None = None,
    dashboard: bool = False,
    compression: bool = False,
    connection_limits: ConnectionLimits | None = None,
    session_limits: SessionLimits | None = None,
    trusted_proxies: Iterable[str] = (),
    max_size: int = 64 * 1024,
    open_timeout: float = 10.0,
    ping_interval: float | None = 20.0,
    ping_timeout: float | None = 20.0,
    close_timeout: float = 5.0,
    grace: float = 10.0,
    tick_interval: float = 0.5,
    direct: bool = True,
    **arguments: Any,
) -> BroadcastServer:
    """Serve a broadcaster over WebSocket: `async with serve(...) as server`, or `await serve(...)`.

    Args:
        broadcaster: What is broadcast.
        host: The interface to listen on.
        port: The TCP port; 0 takes a free one, found in `BroadcastServer.port`.
        authenticate: Says who a peer is; this and the arguments that are not described here
            (`authorize`, `submit`, `cancel`, `origins`, `connection_limits`, `session_limits`,
            `trusted_proxies`, `close_timeout`, `tick_interval`, `direct`) are those of
            `WebSocketEndpoint`.
        allow_anonymous: Whether to listen beyond the loopback interface without `authenticate`.
        dashboard: Whether to serve the dashboard page at `/`.
        compression: Whether to agree to permessage-deflate, without context takeover.
        max_size: Bytes of an inbound message; a larger one closes the connection with 1009.
        open_timeout: Seconds for a handshake.
        ping_interval: Seconds between keepalive pings.
        ping_timeout: Seconds for a pong, after which a vanished peer is dropped.
        grace: Seconds `close` gives the peers.
        **arguments: Further ones of `websockets.asyncio.server.serve`, such as `ssl` or `sock`.

    Raises:
        InvalidArgument: It would let strangers in: there is no `authenticate`, the host is not the
            loopback interface, and `allow_anonymous` was not given.
    """
    loopback = _is_loopback(host, arguments.get("sock"))
    if authenticate is None and not loopback and not allow_anonymous:
        raise InvalidArgument(
            f"expected `authenticate` to listen on {host or 'every interface'}: without it "
            "everyone there has every right (allow_anonymous=True if that is meant)"
        )
    endpoint = WebSocketEndpoint(
        broadcaster,
        authenticate=authenticate,
        authorize=authorize,
        submit=submit,
        cancel=cancel,
        origins=origins,
        connection_limits=connection_limits,
        session_limits=session_limits,
        loopback_only=authenticate is None and loopback and not allow_anonymous,
        trusted_proxies=trusted_proxies,
        close_timeout=close_timeout,
        tick_interval=tick_interval,
        direct=direct,
    )
    arguments = {
        "compression": None,
        "max_size": max_size,
        "open_timeout": open_timeout,
        "ping_interval": ping_interval,
        "ping_timeout": ping_timeout,
        "close_timeout": close_timeout,
        "write_limit": WRITE_LIMIT,
        "logger": redacted_logger(),
        "server_header": None,  # which versions run here is nobody's business
        **arguments,
    }
    return BroadcastServer(
        broadcaster,
        endpoint,
        host=host,
        port=port,
        compression=compression,
        dashboard=dashboard,
        grace=grace,
        arguments=arguments,
    )


class _DeflateFactory(ServerPerMessageDeflateFactory):
    """Agrees to a `GuardedDeflate`.

    It declines windows of 8 bits, which zlib cannot make: `websockets` before 16 accepts them.
    """

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        if ("server_max_window_bits", "8") in params:
            raise NegotiationError("expected server_max_window_bits of 9 to 15")
        answer, agreed = super().process_request_params(params, accepted_extensions)
        return answer, GuardedDeflate(
            agreed.remote_no_context_takeover,
            agreed.local_no_context_takeover,
            agreed.remote_max_window_bits,
            agreed.local_max_window_bits,
            agreed.compress_settings,
        )


def _deflate_factory() -> ServerPerMessageDeflateFactory:
    # 12 bits are what `websockets` chooses too: 4 KiB of window serve frames of this size as well.
    return _DeflateFactory(
        server_no_context_takeover=True,
        client_no_context_takeover=True,
        server_max_window_bits=12,
        client_max_window_bits=12,
    )


def _is_loopback(host: str | None, sock: socket.socket | None) -> bool:
    if sock is not None:
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return True
        host = sock.getsockname()[0]
    if host is None or host == "":
        return False
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _dashboard_page() -> bytes:
    return files("jobqueue_broadcast").joinpath("dashboard/index.html").read_bytes()


def _page_response(page: bytes) -> Response:
    headers = Headers(
        {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(page)),
            "Content-Security-Policy": _PAGE_POLICY,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-cache",
            "Connection": "close",
        }
    )
    return Response(200, "OK", headers, page)
