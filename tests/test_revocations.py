from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.revocations import Revocations


def held(name: str, issued_ms: int | None) -> Principal:
    return Principal(id=name, issued_at=None if issued_ms is None else issued_ms / 1000)


def test_credentials_issued_up_to_a_revocation_are_refused() -> None:
    revocations = Revocations(retention=60, limit=10)
    revocations.revoke("a", 5000)
    assert [revocations.is_revoked(held("a", at)) for at in (4999, 5000, 5001)] == [
        True,
        True,
        False,
    ]
    assert not revocations.is_revoked(held("b", 4999))


def test_a_credential_of_unknown_age_is_refused_until_the_revocation_is_undone() -> None:
    revocations = Revocations(retention=60, limit=10)
    revocations.revoke("a", 5000)
    assert revocations.is_revoked(held("a", None))
    revocations.unrevoke("a")
    revocations.unrevoke("a")
    assert not revocations.is_revoked(held("a", None))
    assert not revocations.is_revoked(held("a", 1))


def test_a_later_revocation_counts_and_an_earlier_one_changes_nothing() -> None:
    revocations = Revocations(retention=60, limit=10)
    for at in (5000, 9000, 7000):
        revocations.revoke("a", at)
    assert len(revocations) == 1
    assert revocations.is_revoked(held("a", 9000))
    assert not revocations.is_revoked(held("a", 9001))


def test_past_the_retention_everything_as_old_is_refused_whoever_it_is() -> None:
    revocations = Revocations(retention=60, limit=10)
    revocations.revoke("a", 5000)
    revocations.expire(64_999)
    assert len(revocations) == 1
    revocations.expire(65_000)
    assert len(revocations) == 0
    assert revocations.is_revoked(held("a", 5000))
    assert revocations.is_revoked(held("b", 5000))
    assert not revocations.is_revoked(held("a", 5001))
    assert not revocations.is_revoked(held("a", None))


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 100)), max_size=30),
    st.integers(1, 4),
)
def test_it_is_bounded_and_nothing_revoked_is_good_again(
    revoked: list[tuple[str, int]], limit: int
) -> None:
    revocations = Revocations(retention=0.05, limit=limit)
    latest: dict[str, int] = {}
    for name, at in revoked:
        revocations.revoke(name, at)
        revocations.expire(at)
        latest[name] = max(at, latest.get(name, 0))
        assert len(revocations) <= limit
        for each, until in latest.items():
            assert revocations.is_revoked(held(each, until))
