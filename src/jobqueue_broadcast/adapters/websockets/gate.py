"""Who is let in: what a handshake must show before it is upgraded (wire protocol, section 1)."""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter
from collections.abc import Iterable
from inspect import isawaitable
from urllib.parse import urlsplit

from msgspec import Struct
from websockets.datastructures import Headers

from jobqueue_broadcast.adapters.websockets.redaction import redacted_traceback
from jobqueue_broadcast.adapters.websockets.remote import TrustedProxies, counted_as
from jobqueue_broadcast.auth import ANONYMOUS, Authenticate, Principal
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.claims import Grant
from jobqueue_broadcast.errors import IdTaken, InvalidArgument
from jobqueue_broadcast.handshake import Handshake, Refusal, Refused, Target, parse_target

__all__ = ["Admission", "ConnectionLimits", "Gate"]

logger = logging.getLogger("jobqueue_broadcast")


class ConnectionLimits(Struct, frozen=True, kw_only=True):
    """How many connections there may be; past the first three, a handshake is answered 503.

    Args:
        total: In all.
        per_principal: Of one principal; not applied to the anonymous one.
        per_address: From one address, or one /64 of IPv6.
        pending: Connections that have not sent their request; past it, the one that has waited
            longest is dropped. And handshakes waiting for `authenticate`; past it, further ones
            are answered 503.
        request_size: Bytes of a request with its headers; past it the answer is 431.
        ping_rate: Pings and pongs per second from one connection, in the long run.
        ping_burst: Pings and pongs at once; past it the connection is aborted.
    """

    total: int = 50_000
    per_principal: int = 1_000
    per_address: int = 10_000
    pending: int = 5_000
    request_size: int = 16 * 1024
    ping_rate: float = 10.0
    ping_burst: int = 100


class Admission(Struct, frozen=True):
    """A handshake that was let in."""

    target: Target
    principal: Principal
    remote: str
    grant: Grant | None = None


class Gate:
    """Lets handshakes in or turns them away.

    Args:
        broadcaster: Knows to whom the ids belong.
        authenticate: The host's; `None`: everyone is the anonymous principal.
        origins: The `Origin`s browsers may come from, exactly; `None`: the same host only. Other
            programs send none and are not concerned.
        limits: How many connections there may be.
        loopback_only: Whether the `Host` header must name the loopback interface. It keeps a web
            page whose name was made to resolve there from passing for the same origin.
        trusted_proxies: The proxies whose `X-Forwarded-For` names the peer.
    """

    def __init__(
        self,
        broadcaster: EventBroadcaster,
        *,
        authenticate: Authenticate | None = None,
        origins: Iterable[str] | None = None,
        limits: ConnectionLimits | None = None,
        loopback_only: bool = False,
        trusted_proxies: Iterable[str] = (),
    ) -> None:
        if isinstance(origins, str):
            raise InvalidArgument(f"origins: expected a collection of origins, got {origins!r}")
        self._broadcaster = broadcaster
        self._authenticate = authenticate
        self._origins = None if origins is None else frozenset(origins)
        self._limits = limits or ConnectionLimits()
        self._loopback_only = loopback_only
        self._proxies = TrustedProxies(trusted_proxies)
        self._by_principal: Counter[str] = Counter()
        self._by_address: Counter[str] = Counter()
        self.connections = 0
        """Connections counted now."""
        self.authenticating = 0
        """Handshakes that wait for `authenticate` now."""
        self.admitted = 0
        """Handshakes let in so far."""
        self.refused: Counter[int] = Counter()
        """Handshakes turned away so far, by HTTP status."""

    async def admit(self, request_target: str, headers: Headers, remote: str) -> Admission:
        """Let a handshake in.

        Raises:
            Refused: It is turned away, and how.
        """
        try:
            admission = await self._admit(request_target, headers, remote)
        except Refused as refused:
            self.refused[refused.refusal.status] += 1
            raise
        self.admitted += 1
        return admission

    @property
    def principals(self) -> int:
        """How many principals are connected."""
        return len(self._by_principal)

    @property
    def addresses(self) -> int:
        """From how many addresses there are connections."""
        return len(self._by_address)

    def enter(self, admission: Admission) -> None:
        """Count a connection."""
        self.connections += 1
        self._by_principal[admission.principal.id] += 1
        self._by_address[counted_as(admission.remote)] += 1

    def leave(self, admission: Admission) -> None:
        """Count a connection no more."""
        self.connections -= 1
        for counter, key in (
            (self._by_principal, admission.principal.id),
            (self._by_address, counted_as(admission.remote)),
        ):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]

    async def _admit(self, request_target: str, headers: Headers, remote: str) -> Admission:
        target, query_token = parse_target(request_target)
        remote = self._proxies.peer(remote, headers.get_all("X-Forwarded-For"))
        self._check_origin(headers)
        self._check_room(remote)
        named = {name.lower(): headers.get_all(name) for name in headers}
        handshake = Handshake(target, named, remote, query_token)
        principal = await self._identify(handshake)
        self._check_credential(target, principal)
        try:
            grant = await self._broadcaster.prepare(
                target.kind, target.id, principal, target.resume
            )
            # Nothing is awaited from here until the connection is counted and registered.
            self._broadcaster.check_id(target.kind, target.id, principal)
        except IdTaken:
            raise Refused(403, f"this {target.kind} id belongs to another principal") from None
        self._check_credential(target, principal)
        self._check_room(remote, principal)
        return Admission(target, principal, remote, grant)

    def _check_credential(self, target: Target, principal: Principal) -> None:
        if target.kind not in principal.roles:
            raise Refused(403, f"expected a credential with the role {target.kind}")
        if self._is_expired(principal) or self._broadcaster.is_revoked(principal):
            raise self._unauthorized()

    async def _identify(self, handshake: Handshake) -> Principal:
        if self._authenticate is None:
            return ANONYMOUS
        if self.authenticating >= self._limits.pending:
            raise Refused(503, "too many handshakes", ("Retry-After", "5"))
        self.authenticating += 1
        try:
            found = self._authenticate(handshake)
            if isawaitable(found):
                found = await found
        except Refused:
            raise
        except Exception as error:  # noqa: BLE001 - logged, without the credential
            text = redacted_traceback(error, handshake.credential)
            logger.error("authenticate failed for %r\n%s", handshake, text)
            raise Refused(503, "cannot authenticate now", ("Retry-After", "5")) from None
        finally:
            self.authenticating -= 1
        if isinstance(found, Principal):
            return found
        if isinstance(found, Refusal):
            refused = Refused(found.status, found.text)
            refused.refusal = found
            raise refused
        raise self._unauthorized()

    def _unauthorized(self) -> Refused:
        return Refused(401, "expected a valid credential", ("WWW-Authenticate", "Bearer"))

    def _is_expired(self, principal: Principal) -> bool:
        expires_at = principal.expires_at
        return expires_at is not None and expires_at <= self._broadcaster.clock.now_ms() / 1000

    def _check_origin(self, headers: Headers) -> None:
        hosts = headers.get_all("Host")
        if self._loopback_only and not all(map(_is_loopback_host, hosts)):
            raise Refused(403, "expected a Host header that names the loopback interface")
        origins = headers.get_all("Origin")
        if not origins:
            return
        if len(origins) > 1:
            raise Refused(400, "Origin: expected once")
        if self._origins is not None:
            allowed = origins[0] in self._origins
        else:
            allowed = len(hosts) == 1 and _host_of_origin(origins[0]) == hosts[0].lower()
        if not allowed:
            raise Refused(403, "this Origin is not allowed")

    def _check_room(self, remote: str, principal: Principal = ANONYMOUS) -> None:
        limits = self._limits
        if (
            self.connections >= limits.total
            or self._by_address[counted_as(remote)] >= limits.per_address
            or (
                principal is not ANONYMOUS
                and self._by_principal[principal.id] >= limits.per_principal
            )
        ):
            raise Refused(503, "too many connections", ("Retry-After", "5"))


def _host_of_origin(origin: str) -> str | None:
    """Return host and port of an origin, as a `Host` header would have them."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None


def _is_loopback_host(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
