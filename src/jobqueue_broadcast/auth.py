"""Who a peer is and what it may do: principals, the hooks that decide, and static tokens."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, TypeAlias

from msgspec import Struct, field

from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.handshake import Handshake, Refusal
from jobqueue_broadcast.topics import members

__all__ = [
    "ANONYMOUS",
    "Action",
    "Authenticate",
    "Authorize",
    "Principal",
    "StaticTokens",
]

Action: TypeAlias = Literal["subscribe", "status", "cancel"]
"""What a client asks to do with a job."""

ROLES: frozenset[str] = frozenset({"monitor", "client"})


class Principal(Struct, frozen=True, kw_only=True):
    """Who a connection acts for.

    Args:
        id: Names the principal; ids of monitors, clients and jobs belong to it. Not a secret.
        roles: `"monitor"`, `"client"`, or both (the default): which endpoints it may connect to.
        expires_at: Unix time in seconds after which the credential is no longer good; `None`:
            never. The connection is then closed with 4401.
        issued_at: Unix time in seconds at which the credential was issued; a revocation of the
            principal refuses those issued before it. `None`: not known, so that a revocation
            refuses it until it is undone.
        claims: Anything the host wants at hand in its `authorize` hook (customer, team).
    """

    id: str
    roles: frozenset[str] = ROLES
    expires_at: float | None = None
    issued_at: float | None = None
    claims: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not _is_text(self.id):
            raise InvalidArgument(f"Principal.id: expected a non-empty string, got {self.id!r}")
        if not _are_roles(self.roles):
            raise InvalidArgument(
                f"Principal.roles: expected a set of some of {sorted(ROLES)}, got {self.roles!r}"
            )
        if not _is_time(self.expires_at):
            raise InvalidArgument(
                "Principal.expires_at: expected Unix time in seconds or None, "
                f"got {self.expires_at!r}"
            )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _are_roles(value: object) -> bool:
    roles = members(value)
    return roles is not None and isinstance(value, frozenset | set) and ROLES.issuperset(roles)


def _is_time(value: object) -> bool:
    # A NaN is not `>=`; it would never expire.
    return value is None or (isinstance(value, int | float) and value >= 0)


ANONYMOUS = Principal(id="anonymous")
"""Everyone, where the host set up no authentication: one principal with every right."""

Authenticate: TypeAlias = Callable[
    [Handshake], Principal | Refusal | Awaitable[Principal | Refusal | None] | None
]
"""Given the handshake, say who it is; a `Refusal`, or `None` for a plain 401, turns it away."""

Authorize: TypeAlias = Callable[[Principal, Action, str], bool | Awaitable[bool]]
"""Whether a principal may do something with a job that it did not submit itself."""


class StaticTokens:
    """Authenticate by a fixed set of bearer tokens.

    Args:
        tokens: From token to the `Principal` it stands for, or to the principal's id.

    Raises:
        InvalidArgument: No token, an empty one, or one that is not a string.

    Every comparison takes the same time, whatever the token given; and is made over bytes,
    because `hmac.compare_digest` raises on text that is not ASCII.
    """

    __slots__ = ("_tokens",)

    def __init__(self, tokens: Mapping[str, Principal | str]) -> None:
        if not tokens:
            raise InvalidArgument("tokens: expected at least one token, got none")
        self._tokens: list[tuple[bytes, Principal]] = []
        for token, owner in tokens.items():
            if not _is_text(token):
                raise InvalidArgument("tokens: expected non-empty strings as tokens")
            principal = owner if isinstance(owner, Principal) else Principal(id=owner)
            self._tokens.append((token.encode(errors="surrogatepass"), principal))

    def __call__(self, handshake: Handshake) -> Principal | None:
        """Return whose token the handshake carries."""
        given = handshake.credential
        if given is None:
            return None
        presented = given.encode(errors="surrogatepass")
        found = None
        for token, principal in self._tokens:
            if hmac.compare_digest(token, presented):
                found = principal
        return found

    def __repr__(self) -> str:
        return f"StaticTokens({len(self._tokens)} tokens)"
