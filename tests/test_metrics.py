import pytest
from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest

from jobqueue_broadcast import EventBroadcaster, JobProgress
from jobqueue_broadcast.metrics import StatsCollector


class Some(Struct):
    open: int
    done_total: int
    refused_total: dict[int, int]
    waiting: dict[int, int]


def exposed(*sources: object, **settings: str) -> list[str]:
    registry = CollectorRegistry()
    registry.register(StatsCollector(*sources, **settings))  # type: ignore[arg-type]
    return generate_latest(registry).decode().splitlines()


def test_figures_become_gauges_counters_and_tables() -> None:
    lines = exposed(lambda: Some(3, 4, {401: 5, 503: 6}, {1: 2}), prefix="jb")
    assert "# TYPE jb_open gauge" in lines
    assert "jb_open 3.0" in lines
    assert "# TYPE jb_done_total counter" in lines
    assert "jb_done_total 4.0" in lines
    assert 'jb_refused_total{code="401"} 5.0' in lines
    assert 'jb_refused_total{code="503"} 6.0' in lines
    assert 'jb_waiting{code="1"} 2.0' in lines


def test_a_broadcaster_is_read_when_scraped() -> None:
    broadcaster = EventBroadcaster()
    registry = CollectorRegistry()
    registry.register(StatsCollector(broadcaster.stats))
    broadcaster.broadcast(JobProgress(job_id="j", worker_id="w", progress=0.5))
    assert b"jobqueue_broadcast_events_total 1.0" in generate_latest(registry)


def test_a_table_that_changes_while_it_is_read_is_read_again() -> None:
    calls = []

    def changing() -> Some:
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("dictionary changed size during iteration")
        return Some(1, 1, {}, {})

    assert "jobqueue_broadcast_open 1.0" in exposed(changing)
    with pytest.raises(RuntimeError):
        exposed(_failing)


def _failing() -> Some:
    raise RuntimeError("always")
