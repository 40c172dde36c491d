"""A restarted server has another epoch: whoever resumes is told, and given the state (R2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobqueue_broadcast import JobCompleted, JobData, JobProgress, JobSubmitted
from tests.faults.processes import ServerProcess
from tests.faults.swarm import Swarm

PEERS = 50
NOW = 1_700_000_000_000


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    swarm = Swarm()
    yield swarm
    swarm.close()


def submitted(number: int) -> JobSubmitted:
    data = JobData(id=f"job-{number}", job_type="t", created_at=NOW)
    return JobSubmitted(job_id=f"job-{number}", job_data=data, timestamp=NOW)


def test_every_peer_with_a_stale_position_is_told(swarm: Swarm) -> None:
    monitors = [f"/ws/monitor/m{number}" for number in range(PEERS)]
    clients = [f"/ws/client/c{number}" for number in range(PEERS)]
    with ServerProcess() as first:
        port = first.port
        before = swarm.connect(
            port,
            [f"{path}?resume=new" for path in monitors]
            + [f"{path}?resume=new&jobs=job-{n}" for n, path in enumerate(clients)],
        )
        first.broadcast(submitted(number) for number in range(PEERS))
        swarm.wait_for(
            lambda: all(
                any("position" in frame and "job_id" in frame for frame in peer.decoded())
                for peer in before
            )
        )
    swarm.wait_for(lambda: all(peer.ended.is_set() for peer in before))
    positions = [
        [frame["position"] for frame in peer.decoded() if "position" in frame][-1]
        for peer in before
    ]
    done = [
        JobCompleted(job_id=f"job-{n}", worker_id="w", result=n, timestamp=NOW + 1)
        for n in range(PEERS)
    ]
    with ServerProcess(port) as second:
        second.restore([*(submitted(number) for number in range(PEERS)), *done])
        after = swarm.connect(
            port,
            [
                f"{path}?resume={position}" + (f"&jobs=job-{n % PEERS}" if n >= PEERS else "")
                for n, (path, position) in enumerate(
                    zip(monitors + clients, positions, strict=True)
                )
            ],
        )
        swarm.wait_for(
            lambda: all(
                any(f["type"] in ("full_state_snapshot", "complete_job") for f in peer.decoded())
                for peer in after
            )
        )
        second.broadcast([JobProgress(job_id="job-new", worker_id="w", progress=0.5)])
        swarm.wait_for(
            lambda: all(peer.decoded()[-1].get("job_id") == "job-new" for peer in after[:PEERS])
        )
    told = [
        [frame["reason"] for frame in peer.decoded() if frame["type"] == "resync_required"]
        for peer in after
    ]
    assert told == [["epoch"]] * (2 * PEERS)
    for peer in after[:PEERS]:
        assert [frame["type"] for frame in peer.decoded()] == [
            "connected",
            "resync_required",
            "full_state_snapshot",
            "update_job_progress",
        ]
    for peer in after[PEERS:]:
        assert [frame["type"] for frame in peer.decoded()] == [
            "connection_established",
            "resync_required",
            "subscribed",
            "job_accepted",
            "complete_job",
        ]
    print(f"\n{2 * PEERS} of {2 * PEERS} peers told resync_required, 0 silently continued")
