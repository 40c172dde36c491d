import hmac
import math
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast import auth
from jobqueue_broadcast.auth import ANONYMOUS, Principal, StaticTokens
from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.handshake import Handshake, Target

SECRET = "s3cr3t-T0ken"


def handshake(credential: str | None) -> Handshake:
    return Handshake(Target(kind="monitor", id="m-1"), {}, "192.0.2.1", credential)


# --- principals ----------------------------------------------------------------------------------


def test_a_principal_may_do_everything_unless_told_otherwise() -> None:
    alice = Principal(id="alice")
    assert alice.roles == {"monitor", "client"}
    assert alice.expires_at is None
    assert alice.claims == {}
    assert ANONYMOUS.roles == {"monitor", "client"}


@pytest.mark.parametrize("expires_at", [None, 0, 1_642_700_000, 1.5, math.inf])
@pytest.mark.parametrize("roles", [frozenset(), {"client"}, frozenset({"monitor"})])
def test_right_principals(roles: Any, expires_at: float | None) -> None:
    principal = Principal(id="alice", roles=roles, expires_at=expires_at, claims={"team": 5})
    assert (principal.roles, principal.expires_at) == (roles, expires_at)


@pytest.mark.parametrize("wrong", ["", None, 5, b"alice", ["alice"]])
def test_an_id_is_a_non_empty_string(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"Principal.id: expected a non-empty string, got"):
        Principal(id=wrong)


@pytest.mark.parametrize("wrong", ["monitor", ["monitor"], {"admin"}, {"monitor", 5}, None, 5])
def test_roles_are_a_set_of_those_there_are(wrong: Any) -> None:
    expected = r"Principal.roles: expected a set of some of \['client', 'monitor'\], got"
    with pytest.raises(InvalidArgument, match=expected):
        Principal(id="alice", roles=wrong)


@pytest.mark.parametrize("wrong", [math.nan, -1, "1642700000", [5]])
def test_an_expiry_is_a_time(wrong: Any) -> None:
    """A NaN would never come, and text would stop the tick that compares it."""
    with pytest.raises(InvalidArgument, match=r"Principal.expires_at: expected Unix time in sec"):
        Principal(id="alice", expires_at=wrong)


# --- static tokens -------------------------------------------------------------------------------


def test_a_token_stands_for_its_principal() -> None:
    bob = Principal(id="bob", roles=frozenset({"client"}))
    tokens = StaticTokens({"for-alice": "alice", "for-bob": bob})
    assert tokens(handshake("for-alice")) == Principal(id="alice")
    assert tokens(handshake("for-bob")) is bob


@pytest.mark.parametrize(
    "credential", [None, "", "for-alice ", "for-alic", "FOR-ALICE", "é", "\udcff"]
)
def test_any_other_credential_is_nobodys(credential: str | None) -> None:
    assert StaticTokens({"for-alice": "alice"})(handshake(credential)) is None


@given(st.dictionaries(st.text(min_size=1), st.just("alice"), min_size=1), st.text(st.characters()))
def test_whose_a_credential_is(owners: dict[str, str], credential: str) -> None:
    tokens = StaticTokens(owners)
    found = tokens(handshake(credential))
    assert (found is not None) == (credential in owners)
    assert all(tokens(handshake(token)) is not None for token in owners)


def test_every_token_is_compared_whatever_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return hmac.compare_digest(a, b)

    class Hmac:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(auth, "hmac", Hmac)
    tokens = StaticTokens({"a": "alice", "b": "bob", "c": "carol"})
    for credential in ("a", "c", "nobody"):
        compared.clear()
        tokens(handshake(credential))
        assert compared == [b"a", b"b", b"c"]


def test_no_tokens_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="tokens: expected at least one token, got none"):
        StaticTokens({})


@pytest.mark.parametrize("wrong", ["", 5, None, SECRET.encode()])
def test_a_wrong_token_is_refused_without_being_shown(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match="tokens: expected non-empty strings as tokens") as e:
        StaticTokens({wrong: "alice"})
    assert SECRET not in "".join(traceback.format_exception(e.value))


def test_a_wrong_owner_is_refused_without_showing_the_token() -> None:
    with pytest.raises(InvalidArgument, match=r"Principal.id: expected a non-empty string") as e:
        StaticTokens({SECRET: ""})
    assert SECRET not in "".join(traceback.format_exception(e.value))


def test_no_repr_shows_a_token() -> None:
    tokens = StaticTokens({SECRET: "alice", "other": "bob"})
    assert repr(tokens) == str(tokens) == "StaticTokens(2 tokens)"
    assert SECRET not in repr(tokens(handshake(SECRET)))
