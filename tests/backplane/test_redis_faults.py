"""R12: Redis killed, black-holed, emptied, trimmed, replaced: nodes are never deaf, never apart."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jobqueue_broadcast import JobCompleted, JobProgress
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.testing import RecordingConnection
from tests.backplane.cluster import DEFAULTS, QUICK, Node, cluster, node, until
from tests.backplane.servers import Proxy, RedisServer

pytestmark = pytest.mark.redis

NOTICED = 5.0  # R12; the limits of these tests are ten times smaller


def progress(job: str, number: int) -> JobProgress:
    return JobProgress(job_id=job, worker_id="w", progress=number / 10_000)


def repeats(one: Node) -> int:
    """How many events this node showed more than once."""
    return sum(count - 1 for count in Counter(one.order()).values())


def outcomes(one: Node) -> set[str]:
    """The jobs whose outcome the monitor was sent: as an event, or in a snapshot after a gap."""
    known = {job for job, what in one.order() if what == "complete_job"}
    for snapshot in one.told("full_state_snapshot"):
        known |= {job["id"] for job in snapshot["data"]["jobs"]["completed"]}
    return known


def past(one: Node) -> dict[int, bytes]:
    """The order of all events as this node has it."""
    history = one.broadcaster.history
    at = Position(history.epoch, history.floor)
    return {record.sequence: record.payload for chunk in history.after(at) for record in chunk}


def same_order(nodes: list[Node]) -> bool:
    """Whether all nodes have one epoch and one order, and sent their peers events in it."""
    for one in nodes:
        by_epoch: dict[str, list[int]] = {}
        for frame in one.frames:
            if "job_id" in frame:
                position = Position.parse(frame["position"])
                by_epoch.setdefault(position.epoch, []).append(position.sequence)
        if any(sequences != sorted(sequences) for sequences in by_epoch.values()):
            return False
    epochs = {one.broadcaster.history.epoch for one in nodes}
    return len(epochs) == 1 and all(past(one) == past(nodes[0]) for one in nodes)


async def work(one: Node, name: str, jobs: int) -> set[str]:
    """Broadcast jobs with progress and an outcome, a few per turn of the loop."""
    done = set()
    for number in range(jobs):
        job = f"{name}-{number}"
        for step in range(3):
            one.broadcaster.broadcast(progress(job, step))
        one.broadcaster.broadcast(JobCompleted(job_id=job, worker_id="w"))
        done.add(job)
        await asyncio.sleep(0.002)
    return done


@asynccontextmanager
async def both_ways(server: RedisServer, **limits: Any) -> AsyncIterator[tuple[Proxy, Node, Node]]:
    """A node that reaches Redis, and one that reaches it through a proxy."""
    async with (
        Proxy(server.port) as proxy,
        node(server.url, **limits) as one,
        node(proxy.url, **limits) as two,
    ):
        yield proxy, one, two


def report(what: str, nodes: list[Node], wanted: set[str]) -> None:
    lost = sum(len(wanted - outcomes(one)) for one in nodes)
    equal = same_order(nodes)
    shown = sum(repeats(one) for one in nodes)
    print(
        f"\n{what}: {len(wanted)} outcomes on {len(nodes)} nodes: lost {lost}, duplicates shown"
        f" {shown}, order equal: {equal}; sent again"
        f" {sum(one.backplane.stats().sent_again_total for one in nodes)}, repeats dropped"
        f" {sum(one.backplane.stats().repeats_total for one in nodes)}"
    )
    assert lost == 0
    assert shown == 0
    assert equal


def test_redis_killed_and_restarted_amid_events(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with cluster(own_redis.url, 3) as nodes:
            working = [
                asyncio.create_task(work(one, f"n{at}", 150)) for at, one in enumerate(nodes)
            ]
            for _ in range(3):
                await asyncio.sleep(0.1)
                own_redis.kill()
                await until(lambda: not any(one.backplane.ready for one in nodes))
                await asyncio.to_thread(own_redis.start)
                await until(lambda: all(one.backplane.ready for one in nodes))
            wanted = set().union(*await asyncio.gather(*working))
            await until(lambda: all(outcomes(one) >= wanted for one in nodes))
            report("R12 killed and restarted 3 times", nodes, wanted)
            assert all(one.backplane.stats().outages_total >= 3 for one in nodes)

    asyncio.run(scenario())


async def black_hole(
    server: RedisServer, seconds: float, jobs: int, within: float, **limits: Any
) -> None:
    """Have Redis out of one node's reach for some time, and let two nodes work meanwhile."""
    async with both_ways(server, **limits) as (proxy, one, two):
        proxy.hold()
        since = time.monotonic()
        await until(lambda: not two.backplane.ready)
        noticed = time.monotonic() - since
        assert noticed < within
        wanted = await work(one, "one", jobs) | await work(two, "two", jobs)
        await until(lambda: len(outcomes(one)) == jobs)
        assert not outcomes(two)
        await asyncio.sleep(max(0.0, since + seconds - time.monotonic()))
        proxy.release()
        await until(lambda: all(outcomes(n) >= wanted for n in (one, two)), within=60)
        await until(lambda: two.backplane.ready)
        what = f"R12 black hole of {time.monotonic() - since:.1f} s, noticed in {noticed:.1f} s"
        report(what, [one, two], wanted)
        assert len(two.told("resync_required")) == 1  # as it started


def test_a_black_hole_is_noticed_and_caught_up_with(redis_server: RedisServer) -> None:
    asyncio.run(black_hole(redis_server, seconds=0, jobs=30, within=NOTICED))


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_black_hole_of_half_a_minute_at_the_default_limits(redis_server: RedisServer) -> None:
    asyncio.run(black_hole(redis_server, seconds=30, jobs=2_000, within=5, **DEFAULTS))


def test_a_frozen_redis_is_noticed(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with cluster(own_redis.url, 2) as nodes:
            own_redis.freeze()
            since = time.monotonic()
            await until(lambda: not any(one.backplane.ready for one in nodes))
            assert time.monotonic() - since < NOTICED
            wanted = await work(nodes[0], "a", 20) | await work(nodes[1], "b", 20)
            own_redis.thaw()
            await until(lambda: all(outcomes(one) >= wanted for one in nodes))
            report("R12 frozen redis", nodes, wanted)

    asyncio.run(scenario())


def test_an_answer_that_was_lost_is_no_second_event(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with both_ways(redis_server) as (proxy, one, two):
            proxy.hold_answers()
            wanted = await work(two, "job", 20)
            await until(lambda: outcomes(one))  # it was appended
            await until(lambda: not two.backplane.ready)
            proxy.cut()
            proxy.release()
            await until(lambda: all(outcomes(n) >= wanted for n in (one, two)))
            await until(lambda: two.backplane.stats().repeats_total)
            report("R12 answers lost", [one, two], wanted)
            assert two.backplane.stats().sent_again_total

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["FLUSHALL", "DEL", "ids go backwards", "other epoch"])
def test_an_emptied_stream_is_a_new_epoch(redis_server: RedisServer, how: str) -> None:
    async def scenario() -> None:
        async with cluster(redis_server.url, 3) as nodes:
            before = await work(nodes[0], "before", 10)
            await until(lambda: all(outcomes(one) >= before for one in nodes))
            epoch = nodes[0].broadcaster.history.epoch
            since = time.monotonic()
            with redis_server.client() as client:
                if how == "FLUSHALL":
                    client.flushall()
                elif how == "other epoch":
                    client.set(nodes[0].backplane.keys.epoch, "another")
                else:
                    client.delete(nodes[0].backplane.keys.events)
                if how == "ids go backwards":
                    client.xadd(nodes[0].backplane.keys.events, {"b": "1"}, id="5-5")
            await until(lambda: all(one.broadcaster.history.epoch != epoch for one in nodes))
            noticed = time.monotonic() - since
            assert noticed < NOTICED
            await until(lambda: all(len(one.told("resync_required")) == 2 for one in nodes))
            after = set().union(*[await work(one, f"after-{n}", 10) for n, one in enumerate(nodes)])
            await until(lambda: all(outcomes(one) >= before | after for one in nodes))
            report(f"R12 {how}, noticed in {noticed:.1f} s", nodes, before | after)
            assert len({one.broadcaster.history.epoch for one in nodes}) == 1
            for one in nodes:
                told = one.told("resync_required")
                assert told[-1]["reason"] == "epoch"
                assert told[-1]["position"].startswith(one.broadcaster.history.epoch)
                assert "gap" in one.statuses()
                assert one.statuses()[-1] == "ready"

    asyncio.run(scenario())


def test_what_was_taken_and_lost_is_sent_again(redis_server: RedisServer) -> None:
    """One node reads before the stream is emptied, the other does not: both end with everything."""

    async def scenario() -> None:
        async with both_ways(redis_server) as (proxy, one, two):
            proxy.hold()
            wanted = await work(one, "job", 10)
            await until(lambda: outcomes(one) >= wanted)
            with redis_server.client() as client:
                client.flushall()
            proxy.release()
            await until(lambda: outcomes(two) >= wanted)
            report("R12 emptied before one node had read", [one, two], wanted)

    asyncio.run(scenario())


def test_a_node_that_was_trimmed_past_tells_its_peers(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with Proxy(redis_server.port) as proxy:
            limits = {"retained": 100}
            async with node(redis_server.url, **limits) as one, node(proxy.url, **limits) as two:
                opted_in, plain = RecordingConnection(), RecordingConnection()
                two.broadcaster.add_client("opted", opted_in, resume="new")
                two.broadcaster.add_client("plain", plain)
                one.broadcaster.broadcast(progress("job", 1))
                await until(lambda: two.order())
                for client_id in ("opted", "plain"):
                    two.broadcaster.subscribe_client_to_job(client_id, "job")
                opted_in.take()
                plain.take()
                proxy.hold()
                one.broadcaster.broadcast(JobCompleted(job_id="job", worker_id="w", result=1))
                for number in range(400):
                    one.broadcaster.broadcast(progress("noise", number))
                    if number % 20 == 0:
                        await until(lambda: not len(one.backplane._out))
                await until(lambda: len(one.order()) == 402)
                await until(lambda: "reader" in two.backplane._health.faults)
                proxy.release()
                await until(lambda: two.backplane.stats().trimmed_total and two.backplane.ready)
                one.broadcaster.broadcast(progress("noise", 9999))
                await until(lambda: two.order()[-1:] == one.order()[-1:])
                assert two.told("resync_required")[-1]["reason"] == "trimmed"
                snapshot = two.told("full_state_snapshot")[-1]["data"]["jobs"]
                assert [job["id"] for job in snapshot["completed"]] == ["job"]
                types = [frame["type"] for frame in opted_in.frames]
                assert types == ["resync_required", "complete_job"]
                assert [frame["type"] for frame in plain.frames] == ["complete_job"]
                assert not one.backplane.stats().trimmed_total
                print("\nR12 trimmed past a node: told, outcome looked up: lost 0")

    asyncio.run(scenario())


def test_a_node_between_two_servers_is_not_deaf(
    redis_server: RedisServer, own_redis: RedisServer
) -> None:
    """Its writer is led to another server, as by DNS in a failover; its reader stays."""

    async def scenario() -> None:
        async with Proxy(redis_server.port) as proxy, node(proxy.url) as one:
            proxy.target = own_redis.port
            one.backplane._writer.reconnect()
            since = time.monotonic()
            await until(lambda: one.backplane.stats().deaf_total)
            assert time.monotonic() - since < NOTICED
            await until(lambda: one.backplane.ready)
            wanted = await work(one, "job", 5)
            await until(lambda: outcomes(one) >= wanted)
            report("R12 two servers", [one], wanted)

    asyncio.run(scenario())


def test_a_server_that_took_over_without_the_last_events(
    redis_server: RedisServer, own_redis: RedisServer
) -> None:
    async def scenario() -> None:
        async with Proxy(redis_server.port) as proxy, cluster(proxy.url, 2) as nodes:
            wanted = await work(nodes[0], "job", 10)
            await until(lambda: all(outcomes(one) >= wanted for one in nodes))
            proxy.target = own_redis.port
            proxy.cut()
            await until(lambda: all("gap" in one.statuses() for one in nodes))
            wanted |= await work(nodes[1], "later", 10)
            await until(lambda: all(outcomes(one) >= wanted for one in nodes))
            report("R12 failover to an empty server", nodes, wanted)

    asyncio.run(scenario())


def test_redis_that_is_not_there_yet_is_waited_for(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        own_redis.kill()
        made = Node(own_redis.url)
        async with made.backplane:
            await until(lambda: "away" in made.statuses())
            assert not made.backplane.ready
            made.broadcaster.broadcast(progress("job", 1))
            await asyncio.to_thread(own_redis.start)
            await made.backplane.wait_ready()
            await until(lambda: made.order())
        assert made.statuses() == ["away", "ready"]

    asyncio.run(scenario())


def test_poisoned_entries_are_dropped(redis_server: RedisServer) -> None:
    """X9."""

    async def scenario() -> None:
        async with node(redis_server.url) as one:
            key = one.backplane.keys.events
            good = b'{"type":"update_job_progress","job_id":"j","worker_id":"w","progress":0.5'
            poison: list[dict[bytes, bytes]] = [
                {b"x": b"1"},
                {b"p": b""},
                {b"p": b"\x80\x04\x95"},
                {b"p": b"{"},
                {b"p": b"[" * 100_000},
                {b"p": b"null"},
                {b"p": b'{"type":"$nothing"}'},
                {b"p": b'{"type":"$principal_revoked"}'},
                {b"p": b'{"type":"update_job_progress","progress":2}'},
                {b"p": b'{"type":"update_job_progress","job_id":"\xff"}'},
                {b"p": good + b',"timestamp":1}', b"n": b"n", b"c": b"-1"},
                {b"p": good + b',"timestamp":1}', b"n": b"n", b"c": b"9" * 500},
                {
                    b"p": b'{"type":"complete_job","job_id":"j","worker_id":"w","result":'
                    + b"9" * 400
                },
            ]
            with redis_server.client() as client:
                for fields in poison:
                    client.xadd(key, fields)
                client.xadd(key, {b"p": good + b', "extra": 1, "timestamp":1 } \n'})
            one.broadcaster.broadcast(progress("after", 1))
            await until(lambda: len(one.order()) == 2)
            dropped = one.backplane.stats().poisoned_total + one.broadcaster.stats().poisoned_total
            assert dropped == len(poison)
            assert one.backplane.ready
            shown = one.told("update_job_progress")[0]
            assert set(shown) == {
                "type", "timestamp", "job_id", "worker_id", "progress", "position",
            }  # fmt: skip
            print(f"\nX9: {len(poison)} poisoned entries dropped and counted, reader alive")

    asyncio.run(scenario())


def test_a_hook_and_a_core_that_fail_do_not_stop_the_reader(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("made up")

        async with node(redis_server.url) as one:
            monkeypatch.setattr(one.backplane._health, "_on_state", fail)
            monkeypatch.setattr(one.broadcaster.intake, "_deliver", fail)
            one.broadcaster.broadcast(progress("job", 1))
            await until(lambda: one.backplane.stats().poisoned_total == 1)
            monkeypatch.undo()
            one.broadcaster.broadcast(progress("job", 2))
            await until(lambda: one.order() == [("job", 0.0002)])

    asyncio.run(scenario())


def test_the_defaults_notice_within_five_seconds() -> None:
    from inspect import signature

    from jobqueue_broadcast.backplane.redis import RedisBackplane

    default = {name: p.default for name, p in signature(RedisBackplane).parameters.items()}
    assert default["block"] + default["timeout"] <= NOTICED
    assert default["probe_interval"] + default["deaf_after"] + default["block"] <= NOTICED
    assert set(QUICK) < set(default)
