"""Where to connect, and what never appears in a message."""

import pytest

from jobqueue_broadcast.client._endpoint import Endpoint, Token, TokenSource
from jobqueue_broadcast.errors import InvalidArgument

pytestmark = pytest.mark.anyio


def test_path_and_parameters_are_added() -> None:
    endpoint = Endpoint("wss://example.org/live/", "client", "a:b~c")
    uri = endpoint.uri([("resume", "e:1.2"), ("jobs", "x y,ü&z")])
    assert (uri.secure, uri.host, uri.port) == (True, "example.org", 443)
    assert uri.resource_name == "/live/ws/client/a:b~c?resume=e:1.2&jobs=x%20y,%C3%BC%26z"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "example.org",
        "ws://",
        "ws://example.org?token=hunter2",
        "ws://example.org#hunter2",
        "ws://user:hunter2@example.org",
    ],
)
def test_urls_that_cannot_be_right_are_not_repeated(url: str) -> None:
    with pytest.raises(InvalidArgument) as wrong:
        Endpoint(url, "monitor", "m")
    assert "hunter2" not in str(wrong.value)


@pytest.mark.parametrize("peer_id", ["", "a/b", "ü", "a b", "x" * 129, "a\n"])
def test_ids_that_cannot_be_right(peer_id: str) -> None:
    with pytest.raises(InvalidArgument):
        Endpoint("ws://example.org", "monitor", peer_id)


async def test_a_token_is_given_or_asked_for_at_every_connect() -> None:
    calls: list[str] = []

    async def ask() -> str:
        calls.append(f"t{len(calls)}")
        return calls[-1]

    assert await TokenSource(None).fetch() is None
    assert await TokenSource("t").fetch() == "t"
    assert await TokenSource(lambda: "t").fetch() == "t"
    source = TokenSource(ask)
    assert [await source.fetch(), await source.fetch()] == ["t0", "t1"]


async def test_a_renewed_token_is_asked_for_once() -> None:
    tokens = ["a", "b", "b"]
    source = TokenSource(lambda: tokens.pop(0))
    assert await source.fetch() == "a"
    assert await source.renewed()
    assert await source.fetch() == "b"
    assert not await source.renewed()
    assert not await TokenSource("fixed").renewed()


@pytest.mark.parametrize("token", ["", "hunter2\r\nX: y", "hünter2", "hunter 2"])
async def test_a_token_no_header_can_carry_is_not_repeated(token: str) -> None:
    given: list[Token] = [token, lambda: token]
    for source in given:
        with pytest.raises(InvalidArgument) as wrong:
            await TokenSource(source).fetch()
        assert "hunter2" not in str(wrong.value)
        assert "hunter2" not in repr(TokenSource(source))
