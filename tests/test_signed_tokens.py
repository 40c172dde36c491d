import time
from typing import Any

import jwt
import pytest

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.handshake import Handshake, Target
from jobqueue_broadcast.signed_tokens import SignedTokens
from jobqueue_broadcast.testing import ManualClock

SECRET = b"s" * 32
NOW = time.time()
GOOD: dict[str, Any] = {"sub": "a", "roles": ["client"], "iat": NOW - 1, "exp": NOW + 86_400}


def handshake(token: str | None) -> Handshake:
    return Handshake(Target(kind="client", id="c"), {}, "local", token)


def signed(key: bytes = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    payload = {name: value for name, value in (GOOD | changes).items() if value is not None}
    return jwt.encode(payload, key, algorithm=algorithm)


def test_what_was_minted_is_read_back() -> None:
    tokens = SignedTokens(SECRET, issuer="shop", audience="broadcast")
    token = tokens.mint("a", roles=["client"], ttl=60, claims={"team": "x"})
    principal = tokens(handshake(token))
    assert principal is not None
    assert (principal.id, principal.roles) == ("a", frozenset({"client"}))
    assert dict(principal.claims) == {"team": "x"}
    assert principal.issued_at is not None
    assert principal.expires_at is not None
    assert principal.expires_at - principal.issued_at == pytest.approx(60)
    assert abs(principal.issued_at - time.time()) < 30


def test_without_a_credential_nobody_is_meant() -> None:
    assert SignedTokens(SECRET)(handshake(None)) is None


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_each_algorithm_takes_its_own_tokens_alone(algorithm: Any) -> None:
    secret = b"s" * 64
    tokens = SignedTokens(secret, algorithm=algorithm)
    assert tokens.verify(tokens.mint("a")) is not None
    for other in {"HS256", "HS384", "HS512"} - {algorithm}:
        assert tokens.verify(signed(secret, other)) is None


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b.c",
        "\ud800",
        "é" * 50,
        jwt.encode(GOOD, "", algorithm="none"),
        signed(b"t" * 32),
        signed(sub=None),
        signed(sub=""),
        signed(sub=7),
        signed(exp=None),
        signed(iat=None),
        signed(exp=NOW - 1),
        signed(iat=NOW + 600),
        signed(iat="x"),
        signed(exp="x"),
        signed(exp=[]),
        signed(exp=1e400),
        signed(exp=-1e400),
        signed(roles=["admin"]),
        signed(roles="client"),
        signed(roles=[7]),
        signed(roles={"client": 1}),
        signed(claims=[1]),
        jwt.encode(GOOD, SECRET, algorithm="HS256", headers={"kid": "other"}),
        jwt.api_jws.encode(b"[]", SECRET, algorithm="HS256"),
        jwt.api_jws.encode(b"\xff", SECRET, algorithm="HS256"),
    ],
)
def test_what_is_no_good_is_refused_and_raises_nothing(token: str) -> None:
    assert SignedTokens(SECRET).verify(token) is None


def test_a_token_without_roles_opens_nothing() -> None:
    principal = SignedTokens(SECRET).verify(signed(roles=None))
    assert principal == Principal(
        id="a", roles=frozenset(), issued_at=GOOD["iat"], expires_at=GOOD["exp"]
    )


@pytest.mark.parametrize(
    ("settings", "changes", "good"),
    [
        ({"issuer": "shop"}, {"iss": "shop"}, True),
        ({"issuer": "shop"}, {"iss": "other"}, False),
        ({"issuer": "shop"}, {}, False),
        ({"audience": "b"}, {"aud": "b"}, True),
        ({"audience": "b"}, {"aud": "c"}, False),
        ({"audience": "b"}, {}, False),
        ({}, {"aud": "c"}, True),
        ({"leeway": 86_400.0}, {"exp": NOW - 1}, True),
        ({"leeway": 30.0}, {"exp": NOW - 600}, False),
    ],
)
def test_issuer_audience_and_leeway(
    settings: dict[str, Any], changes: dict[str, Any], good: bool
) -> None:
    principal = SignedTokens(SECRET, **settings).verify(signed(**changes))
    assert (principal is not None) is good
    if principal is not None:
        expected = (GOOD | changes)["exp"] + settings.get("leeway", 0.0)
        assert principal.expires_at == pytest.approx(expected)


def test_a_key_is_changed_without_a_gap() -> None:
    old = SignedTokens({"2025": b"o" * 32})
    both = SignedTokens({"2026": "n" * 32, "2025": b"o" * 32})
    new = SignedTokens({"2026": "n" * 32})
    assert both.verify(old.mint("a")) is not None
    assert new.verify(both.mint("a")) is not None
    assert new.verify(old.mint("a")) is None
    assert old.verify(both.mint("a")) is None
    assert jwt.get_unverified_header(both.mint("a"))["kid"] == "2026"


@pytest.mark.parametrize(
    ("keys", "algorithm"),
    [
        ("", "HS256"),
        (b"s" * 31, "HS256"),
        ("s" * 47, "HS384"),
        ("s" * 63, "HS512"),
        ({}, "HS256"),
        ({"a": b"s" * 32, "b": b"short"}, "HS256"),
        (SECRET, "none"),
        (SECRET, "RS256"),
    ],
)
def test_weak_keys_and_other_algorithms_are_refused(keys: Any, algorithm: Any) -> None:
    with pytest.raises(InvalidArgument):
        SignedTokens(keys, algorithm=algorithm)


@pytest.mark.parametrize(
    "wrong", [{"principal_id": ""}, {"roles": ["admin"]}, {"ttl": 0}, {"ttl": float("nan")}]
)
def test_what_would_be_no_good_is_not_minted(wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"principal_id": "a"} | wrong
    with pytest.raises(InvalidArgument):
        SignedTokens(SECRET).mint(**arguments)


def test_the_time_of_issue_is_the_clock_s() -> None:
    tokens = SignedTokens(SECRET, clock=ManualClock(1_642_700_000_500))
    payload = jwt.decode(tokens.mint("a"), options={"verify_signature": False})
    assert payload["iat"] == 1_642_700_000.5


def test_the_repr_shows_no_key() -> None:
    assert repr(SignedTokens({"k": "secret" * 8})) == "SignedTokens(HS256, 1 keys)"
