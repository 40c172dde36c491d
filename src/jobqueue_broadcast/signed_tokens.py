"""Signed tokens that expire: what a host mints for its browsers, without a store (extra `jwt`).

A token is a JSON Web Token signed with a secret that only the host's servers have. The web
application mints one for whoever is logged in there, and `serve(authenticate=tokens)` reads it::

    tokens = SignedTokens(os.environ["BROADCAST_SECRET"], issuer="shop", audience="broadcast")
    token = tokens.mint("customer-7", roles=["client"], ttl=300)

Only HMAC is offered: who mints here also verifies. To verify another party's tokens, with a
public key, write an `authenticate` of your own around `jwt.decode`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import jwt
import msgspec
from msgspec import Struct

from jobqueue_broadcast.auth import ROLES, Principal
from jobqueue_broadcast.clock import Clock, SystemClock
from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.handshake import Handshake

__all__ = ["SignedTokens"]

Algorithm: TypeAlias = Literal["HS256", "HS384", "HS512"]

# RFC 7518, section 3.2: a key must be at least as long as the hash.
_SECRET_BYTES: dict[str, int] = {"HS256": 32, "HS384": 48, "HS512": 64}

# Older PyJWT raises plain errors for odd payloads.
_NO_GOOD = (
    jwt.PyJWTError,
    msgspec.MsgspecError,
    InvalidArgument,
    TypeError,
    ValueError,
    OverflowError,
)
_REQUIRED = ["sub", "iat", "exp"]


class SignedTokens:
    """Mints tokens, and authenticates by them.

    Args:
        keys: The secret; or several by name, to change it without a gap: tokens are signed with
            the first, and each names its key, so that those signed with an older one are good
            until that is removed. At least 32 bytes each (48 for HS384, 64 for HS512).
        algorithm: HS256, HS384 or HS512; no other is accepted, `none` least of all.
        issuer: Who mints; checked when given.
        audience: Whom the tokens are for; checked when given, so that a token minted with the same
            secret for another service is no good here.
        leeway: Seconds by which clocks may differ.
        clock: Tells the time of issue.

    Raises:
        InvalidArgument: No key, a short one, or another algorithm.
    """

    __slots__ = ("_algorithm", "_audience", "_clock", "_issuer", "_keys", "_leeway")

    def __init__(
        self,
        keys: str | bytes | Mapping[str, str | bytes],
        *,
        algorithm: Algorithm = "HS256",
        issuer: str | None = None,
        audience: str | None = None,
        leeway: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        least = _SECRET_BYTES.get(algorithm)
        if least is None:
            raise InvalidArgument(
                f"algorithm: expected one of {', '.join(_SECRET_BYTES)}, got {algorithm!r}"
            )
        named = keys if isinstance(keys, Mapping) else {"": keys}
        self._keys = {name: _secret(key, least) for name, key in named.items()}
        if not self._keys:
            raise InvalidArgument("keys: expected at least one, got none")
        self._algorithm = algorithm
        self._issuer = issuer
        self._audience = audience
        self._leeway = leeway
        self._clock = clock or SystemClock()

    def mint(
        self,
        principal_id: str,
        *,
        roles: Iterable[str] = ROLES,
        ttl: float = 300.0,
        claims: Mapping[str, Any] | None = None,
    ) -> str:
        """Return a token.

        Args:
            principal_id: Whom it stands for.
            roles: Which endpoints it opens.
            ttl: Seconds it is good for. Connections it opened are closed when it expires.
            claims: Further ones, for the `authorize` hook; readable by whoever holds the token.

        Raises:
            InvalidArgument: An empty id, an unknown role, or a lifetime that is not positive.
        """
        if not ttl > 0:
            raise InvalidArgument(f"ttl: expected a positive number of seconds, got {ttl!r}")
        now = self._clock.now_ms() / 1000
        # A fraction of a second counts: a token minted just after a revocation is good.
        principal = Principal(
            id=principal_id, roles=frozenset(roles), issued_at=now, expires_at=now + ttl
        )
        payload: dict[str, Any] = {
            "sub": principal.id,
            "roles": sorted(principal.roles),
            "iat": now,
            "exp": now + ttl,
        }
        if self._issuer is not None:
            payload["iss"] = self._issuer
        if self._audience is not None:
            payload["aud"] = self._audience
        if claims:
            payload["claims"] = dict(claims)
        name, key = next(iter(self._keys.items()))
        headers = {"kid": name} if name else None
        # Without `cryptography`, the types of PyJWT are partly unknown.
        return jwt.encode(  # pyright: ignore[reportUnknownMemberType]
            payload, key, algorithm=self._algorithm, headers=headers
        )

    def __call__(self, handshake: Handshake) -> Principal | None:
        """Return whose token the handshake carries: `authenticate` of `serve`."""
        return None if handshake.credential is None else self.verify(handshake.credential)

    def verify(self, token: str) -> Principal | None:
        """Return whom a token stands for; `None` when it is no good, for whatever reason."""
        try:
            return _principal(msgspec.convert(self._decode(token), _Payload), self._leeway)
        except _NO_GOOD:
            return None

    def _decode(self, token: str) -> dict[str, Any]:
        name = jwt.get_unverified_header(token).get("kid", "")
        key = self._keys.get(name) if isinstance(name, str) else None
        if key is None:
            raise jwt.InvalidKeyError
        return jwt.decode(  # pyright: ignore[reportUnknownMemberType]
            token,
            key,
            algorithms=[self._algorithm],
            issuer=self._issuer,
            audience=self._audience,
            leeway=self._leeway,
            options={"require": _REQUIRED, "verify_aud": self._audience is not None},
        )

    def __repr__(self) -> str:
        return f"SignedTokens({self._algorithm}, {len(self._keys)} keys)"


class _Payload(Struct):
    sub: str
    iat: float
    exp: float
    # A token without roles has none: only what was granted.
    roles: list[str] = []
    claims: dict[str, Any] = {}


def _secret(key: str | bytes, least: int) -> bytes:
    secret = key.encode() if isinstance(key, str) else key
    if len(secret) < least:
        raise InvalidArgument(
            f"keys: expected secrets of at least {least} bytes, such as secrets.token_bytes makes"
        )
    return secret


def _principal(payload: _Payload, leeway: float) -> Principal:
    return Principal(
        id=payload.sub,
        roles=frozenset(payload.roles),
        issued_at=payload.iat,
        expires_at=payload.exp + leeway,
        claims=payload.claims,
    )
