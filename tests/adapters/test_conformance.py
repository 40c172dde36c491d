"""The suite any adapter can run, over ours in each of its ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from jobqueue_broadcast import EventBroadcaster
from jobqueue_broadcast.adapters.websockets import serve
from jobqueue_broadcast.session import Hooks
from jobqueue_broadcast.testing.adapters import ADAPTER_CHECKS, check_adapter


@pytest.mark.parametrize(
    ("direct", "compression"), [(True, False), (True, True), (False, False), (False, True)]
)
def test_the_websockets_adapter_conforms(direct: bool, compression: bool) -> None:
    @asynccontextmanager
    async def start(broadcaster: EventBroadcaster, hooks: Hooks) -> AsyncGenerator[str]:
        async with serve(
            broadcaster,
            "localhost",
            0,
            authorize=hooks.authorize,
            submit=hooks.submit,
            cancel=hooks.cancel,
            direct=direct,
            compression=compression,
        ) as server:
            yield f"ws://localhost:{server.port}"

    asyncio.run(check_adapter(start))


def test_an_adapter_that_does_not_conform_is_told_where() -> None:
    @asynccontextmanager
    async def start(broadcaster: EventBroadcaster, hooks: Hooks) -> AsyncGenerator[str]:
        # Never tells the broadcaster's hooks from none, so `submit_job` is answered `unsupported`.
        async with serve(broadcaster, "localhost", 0) as server:
            yield f"ws://localhost:{server.port}"

    with pytest.raises(ExceptionGroup, match=f"1 of {len(ADAPTER_CHECKS)} checks failed") as caught:
        asyncio.run(check_adapter(start))
    assert caught.value.exceptions[0].__notes__ == ["in submits_and_subscribes"]
