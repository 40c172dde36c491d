"""The part of the benchmarks that goes through Redis runs, and every event arrives."""

from benchmarks import redis_path
from benchmarks.results import Results
from tests.backplane.servers import require_redis_server


def test_every_figure_is_there() -> None:
    require_redis_server()
    results = Results()
    redis_path.measure(results, events=600, paced=20, runs=1)
    assert not results.absent
    assert {figure.what for figure in results.figures} == {
        redis_path.EACH,
        redis_path.CPU_EACH,
        redis_path.MIDDLE,
        redis_path.LATE,
        redis_path.OTHERS,
        redis_path.APPENDED,
        redis_path.READ,
        redis_path.ONE_BY_ONE,
    }
    assert all(value >= 0 for figure in results.figures for value in figure.values)
    assert {goal.limit for goal in results.goals} == {1.5}
