"""X6: a credential that expires or is revoked ends its connections, and lets nobody resume."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from jobqueue_broadcast import EventBroadcaster, Principal, StaticTokens
from jobqueue_broadcast.adapters.websockets import serve
from jobqueue_broadcast.signed_tokens import SignedTokens
from tests.adapters.raw import Raw, in_loop, request

SIGNED = SignedTokens(b"k" * 32, audience="broadcast")


async def connected(port: int, token: str, kind: str, resume: str = "new") -> Raw:
    target = f"/ws/{kind}/x?resume={resume}&token={token}"
    return await Raw.connect(port, request(target))


async def position(peer: Raw) -> str:
    found = await peer.frame()
    assert found is not None
    match = re.search(rb'"position":"([^"]+)"', found[1])
    assert match is not None
    return match[1].decode()


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("kind", ["monitor", "client"])
def test_an_expired_credential_ends_the_connection_and_resumes_nothing(
    kind: str, direct: bool
) -> None:
    @in_loop
    async def scenario() -> None:
        async with serve(
            EventBroadcaster(), "127.0.0.1", 0, authenticate=SIGNED, direct=direct
        ) as server:
            token = SIGNED.mint("somebody", ttl=1.0)
            expires = time.time() + 1.0
            with await connected(server.port, token, kind) as peer:
                assert await peer.status() == 101
                at = await position(peer)
                assert await peer.close_code() == 4401
                late = time.time() - expires
            with await connected(server.port, token, kind, at) as peer:
                assert await peer.status() == 401
            fresh = SIGNED.mint("somebody")
            with await connected(server.port, fresh, kind, at) as peer:
                assert await peer.status() == 101
            print(f"X6: a {kind} closed with 4401 {late:.2f} s after its token expired; 0 resumed")
            assert -0.05 <= late <= 1.0

    scenario()


@pytest.mark.parametrize("kind", ["monitor", "client"])
def test_a_revoked_credential_ends_the_connection_and_resumes_nothing(kind: str) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        static = StaticTokens({"static": "somebody", "other": "another"})

        async with serve(
            broadcaster, "127.0.0.1", 0, authenticate=lambda h: static(h) or SIGNED(h)
        ) as server:
            for token in (SIGNED.mint("somebody"), "static"):
                with (
                    await connected(server.port, token, kind) as peer,
                    await Raw.connect(server.port, request("/ws/monitor/y?token=other")) as other,
                ):
                    assert await peer.status() == await other.status() == 101
                    at = await position(peer)
                    begun = time.monotonic()
                    broadcaster.revoke(Principal(id="somebody"))
                    assert await peer.close_code() == 4401
                    took = time.monotonic() - begun
                with await connected(server.port, token, kind, at) as peer:
                    assert await peer.status() == 401
                print(f"X6: a {kind} closed with 4401 {took:.3f} s after revoke; 0 resumed")
                assert took <= 1.0
                assert [each.principal.id for each in broadcaster.subscribers()] in (
                    ["another"],
                    [],
                )
                # A token of the same millisecond is refused as well, to be on the safe side.
                await asyncio.sleep(0.002)
                with await connected(server.port, SIGNED.mint("somebody"), kind, at) as peer:
                    assert await peer.status() == 101
                broadcaster.unrevoke("somebody")
                with await connected(server.port, token, kind, at) as peer:
                    assert await peer.status() == 101

    scenario()
