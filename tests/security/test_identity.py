"""X3 and X4: nobody takes another's id, and nobody learns of another's jobs."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Any

import pytest

from jobqueue_broadcast import (
    EventBroadcaster,
    Handshake,
    JobCompleted,
    JobProgress,
    JobSubmitted,
    Principal,
    StaticTokens,
)
from jobqueue_broadcast.adapters.websockets import serve
from jobqueue_broadcast.events import JobData
from tests.adapters.raw import Raw, frame, gather, in_loop, request, until

TOKENS = StaticTokens({"alice": "alice", "bob": "bob"})
SECRET = "the-result-of-alice"


def asking(target: str, who: str) -> bytes:
    return request(target, f"Authorization: Bearer {who}")


async def slow_tokens(handshake: Handshake) -> Principal | None:
    await asyncio.sleep(0)
    return TOKENS(handshake)


def submitted(job_id: str) -> JobSubmitted:
    return JobSubmitted(
        job_id=job_id, job_data=JobData(id=job_id, job_type="t", priority=1, created_at=1)
    )


# --- X3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["monitor", "client"])
def test_the_owner_of_an_id_is_undisturbed(kind: str) -> None:
    attempts = 300

    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        async with serve(broadcaster, "127.0.0.1", 0, authenticate=slow_tokens) as server:
            with await Raw.connect(server.port, asking(f"/ws/{kind}/x", "alice")) as owner:
                assert await owner.status() == 101
                await owner.frame()
                if kind == "client":
                    broadcaster.subscribe_client_to_job("x", "job-1")
                statuses: Counter[int] = Counter()
                for number in range(attempts):
                    broadcaster.broadcast(
                        JobProgress(job_id="job-1", worker_id="w", progress=number / attempts)
                    )
                    with await Raw.connect(server.port, asking(f"/ws/{kind}/x", "bob")) as thief:
                        statuses[await thief.status()] += 1
                got = [await owner.frame() for _ in range(attempts)]
                assert all(found is not None and found[0] == 0x81 for found in got)
                print(f"X3: {attempts} attempts on a {kind} id, {statuses[101]} let in")
                assert statuses == {403: attempts}
                await until(lambda: server.endpoint.stats().connections == 1)

    scenario()


@in_loop
async def test_racing_for_an_id_ends_with_one_principal_and_no_cross_delivery() -> None:
    ids, racers = 20, 6
    broadcaster = EventBroadcaster()
    async with serve(
        broadcaster, "127.0.0.1", 0, authenticate=slow_tokens, close_timeout=0.1
    ) as server:
        crossed = refused = 0
        for number in range(ids):
            target = f"/ws/client/id-{number}"
            names = ["alice", "bob"] * (racers // 2)
            peers = await gather(
                *(Raw.connect(server.port, asking(target, name)) for name in names)
            )
            statuses = await gather(*(peer.status() for peer in peers))
            holder = broadcaster.clients.get(f"id-{number}")
            assert holder is not None
            broadcaster.subscribe_client_to_job(f"id-{number}", f"job-{number}")
            broadcaster.broadcast(
                JobCompleted(job_id=f"job-{number}", worker_id="w", result=SECRET)
            )
            broadcaster.delivery.close(holder, 1001, "that was it")
            got = await gather(*(peer.rest() for peer in peers))
            reached = {
                name for name, data in zip(names, got, strict=True) if SECRET.encode() in data
            }
            assert reached == {holder.principal.id}
            crossed += len(reached - {holder.principal.id})
            winners = {n for n, status in zip(names, statuses, strict=True) if status == 101}
            refused += statuses.count(403)
            crossed += len(winners) - 1
            for peer in peers:
                peer.close()
        print(f"X3: {ids * racers} connects racing for {ids} ids, {refused} refused, "
              f"{crossed} cross-deliveries")  # fmt: skip
        assert crossed == 0


# --- X4 ------------------------------------------------------------------------------------------

FOREIGN = [f"alice-{state}" for state in ("pending", "active", "done", "submitted")]
MISSING = [f"nojob-{state}" for state in ("pending", "active", "done", "submitted")]
COMMANDS = ["subscribe_progress", "get_job_status", "cancel_job", "unsubscribe_progress"]


def broadcaster_with_jobs_of_alice() -> EventBroadcaster:
    broadcaster = EventBroadcaster()
    for job_id in FOREIGN:
        broadcaster.accept_job(job_id, Principal(id="alice"))
    for job_id in FOREIGN[:3]:
        broadcaster.broadcast(submitted(job_id))
    for job_id in FOREIGN[1:3]:
        broadcaster.broadcast(JobProgress(job_id=job_id, worker_id="w", progress=0.5))
    broadcaster.broadcast(JobCompleted(job_id=FOREIGN[2], worker_id="w", result=SECRET))
    return broadcaster


def but_for_what_was_asked(data: bytes) -> bytes:
    """What an answer says, without the time and the id that the peer itself named."""
    data = re.sub(rb'"timestamp":\d+', b'"timestamp":0', data)
    return re.sub(rb'("job_id":")[a-z]+-', rb"\1", data)


async def answers(port: int, jobs: list[str], target: str = "/ws/client/bob") -> list[bytes]:
    """Ask everything of each job; return all that comes, in order."""
    got = []
    with await Raw.connect(port, asking(target, "bob")) as peer:
        assert await peer.status() == 101
        for job_id in jobs:
            for command in COMMANDS:
                asked = f'{{"type":"{command}","job_id":"{job_id}","message_id":"m"}}'
                await peer.send(frame(asked.encode()))
        await peer.send(frame(b'{"type":"nonsense","message_id":"end"}'))
        while (found := await peer.frame()) is not None and b'"end"' not in found[1]:
            got.append(but_for_what_was_asked(found[1]))
    return got


def refuse(*_: Any) -> bool:
    return False


async def refuse_later(*_: Any) -> bool:
    await asyncio.sleep(0)
    return False


@pytest.mark.parametrize("authorize", [None, refuse, refuse_later])
def test_a_foreign_job_looks_like_none_at_all(authorize: Any) -> None:
    cancelled: list[str] = []

    @in_loop
    async def scenario() -> None:
        async with serve(
            broadcaster_with_jobs_of_alice(),
            "127.0.0.1",
            0,
            authenticate=TOKENS,
            authorize=authorize,
            cancel=lambda job_id, _: cancelled.append(job_id),
        ) as server:
            foreign = await answers(server.port, FOREIGN)
            missing = await answers(server.port, MISSING)
            assert len(foreign) == 1 + len(FOREIGN) * len(COMMANDS)
            assert foreign == missing
            joined = "/ws/client/bob?jobs="
            foreign = await answers(server.port, [], joined + ",".join(FOREIGN))
            missing = await answers(server.port, [], joined + ",".join(MISSING))
            assert len(foreign) == 1 + len(FOREIGN)
            assert foreign == missing
            tried = len(FOREIGN) * (len(COMMANDS) + 1)
            print(f"X4: {tried} commands on another's jobs, answered as {tried} on none; "
                  f"{len(cancelled)} cancelled")  # fmt: skip
            assert cancelled == []

    scenario()


@in_loop
async def test_resuming_gives_nothing_of_anothers_jobs() -> None:
    broadcaster = EventBroadcaster()
    async with serve(broadcaster, "127.0.0.1", 0, authenticate=TOKENS) as server:
        with await Raw.connect(server.port, asking("/ws/client/b?resume=new", "bob")) as peer:
            assert await peer.status() == 101
            greeting = await peer.frame()
            assert greeting is not None
        broadcaster.accept_job("job-1", Principal(id="alice"), "a")
        broadcaster.broadcast(JobCompleted(job_id="job-1", worker_id="w", result=SECRET))
        position = re.findall(rb'"position":"([^"]+)"', greeting[1])[0].decode()
        target = f"/ws/client/b?resume={position}&jobs=job-1"
        got = await answers(server.port, [], target)
        assert not [each for each in got if SECRET.encode() in each]
        # Nor under the id of alice's client, whose subscriptions wait for her.
        with await Raw.connect(
            server.port, asking(f"/ws/client/a?resume={position}", "bob")
        ) as peer:
            assert await peer.status() == 403
    print("X4: resumed over another's job, 0 of its frames received")
