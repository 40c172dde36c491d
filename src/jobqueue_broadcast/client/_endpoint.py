"""Where a peer connects, and with what credential: URL, id, query, token (wire protocol, §1).

The token travels in the `Authorization` header alone. Nothing here ever puts it, or a URL that
might hold one, into a message or a repr.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from inspect import isawaitable
from typing import Literal, TypeAlias
from urllib.parse import quote, urlsplit

from websockets.uri import WebSocketURI, parse_uri

from jobqueue_broadcast.errors import InvalidArgument

__all__ = ["Endpoint", "Token", "TokenSource"]

Token: TypeAlias = str | Callable[[], str | Awaitable[str]] | None
"""A bearer token, or a function, async or not, that is called for one at every connect."""

_ID = re.compile(r"[A-Za-z0-9._~:-]{1,128}")
# What a header can carry; in particular no line break, with which a header could be smuggled in.
_TOKEN = re.compile(r"[\x21-\x7e]+")


class Endpoint:
    """One monitor's or client's endpoint on a server.

    Args:
        url: `ws://host:port` or `wss://…`, with the path the endpoints are mounted under, if any.
        kind: Which endpoint.
        peer_id: The monitor's or client's id.

    Raises:
        InvalidArgument: The URL has another scheme, no host, or a query, fragment or credential;
            or the id is not 1 to 128 characters of `A-Z a-z 0-9 . _ ~ : -`.
    """

    def __init__(self, url: str, kind: Literal["monitor", "client"], peer_id: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise InvalidArgument("url: expected ws://host:port or wss://host:port")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise InvalidArgument(
                "url: expected no query, fragment or credential; a token is given as token=…"
            )
        if not _ID.fullmatch(peer_id):
            raise InvalidArgument(
                f"{kind}_id: expected 1 to 128 characters of A-Z a-z 0-9 . _ ~ : -, got {peer_id!r}"
            )
        self.kind: Literal["monitor", "client"] = kind
        self.peer_id = peer_id
        self._base = f"{url.rstrip('/')}/ws/{kind}/{peer_id}"

    def __repr__(self) -> str:
        return self._base

    def uri(self, parameters: Iterable[tuple[str, str]]) -> WebSocketURI:
        """Return where to connect, with these query parameters."""
        query = "&".join(f"{name}={quote(value, safe=',:')}" for name, value in parameters)
        return parse_uri(f"{self._base}?{query}" if query else self._base)


class TokenSource:
    """Where a peer gets its token from.

    Args:
        token: The token, a function that returns one, or `None`.
    """

    def __init__(self, token: Token) -> None:
        self._token = token
        self._last: str | None = None
        self._renewed: str | None = None

    def __repr__(self) -> str:
        return "TokenSource()"

    async def fetch(self) -> str | None:
        """Return the token to connect with.

        Raises:
            InvalidArgument: It is not a string of visible ASCII characters.
            Exception: Whatever the caller's function raises.
        """
        token, self._renewed = self._renewed, None
        if token is None:
            token = await self._ask()
        if token is not None and not _TOKEN.fullmatch(token):
            raise InvalidArgument("token: expected one or more visible ASCII characters")
        self._last = token
        return token

    async def renewed(self) -> bool:
        """Ask for another token, for the next `fetch`; return whether it is another one."""
        if not callable(self._token):
            return False
        self._renewed = await self._ask()
        return self._renewed != self._last

    async def _ask(self) -> str | None:
        if not callable(self._token):
            return self._token
        given = self._token()
        return await given if isawaitable(given) else given
