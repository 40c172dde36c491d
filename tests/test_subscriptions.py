from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.subscriptions import JobIndex

CLIENTS = st.sampled_from(["c1", "c2", "c3", "c4"])
JOBS = st.sampled_from(["a", "b", "c"])


@given(
    st.lists(
        st.tuples(st.just("subscribe"), CLIENTS, JOBS)
        | st.tuples(st.just("subscribe"), CLIENTS, JOBS)
        | st.tuples(st.just("unsubscribe"), CLIENTS, JOBS)
        | st.tuples(st.just("end_job"), CLIENTS, JOBS)
        | st.tuples(st.just("remove"), CLIENTS, JOBS),
        max_size=60,
    )
)
def test_each_job_finds_its_clients_and_each_client_its_jobs(
    steps: list[tuple[str, str, str]],
) -> None:
    index = JobIndex()
    model: dict[str, dict[str, tuple[int, int]]] = {}
    for number, (step, client_id, job_id) in enumerate(steps):
        if step == "end_job":
            index.end_job(job_id)
            for jobs in model.values():
                jobs.pop(job_id, None)
            continue
        client = index.get_or_add(client_id)
        jobs = model.setdefault(client_id, {})
        match step:
            case "subscribe":
                index.subscribe(client, job_id, (number, 0))
                jobs[job_id] = (number, 0)
            case "unsubscribe":
                index.unsubscribe(client, job_id)
                jobs.pop(job_id, None)
            case _:
                index.remove(client)
                del model[client_id]
        assert len(index) == len(model)
        assert index.subscription_count == sum(map(len, model.values()))
        for each in ("a", "b", "c"):
            found = [client.id for client in index.of_job(each)]
            assert sorted(found) == sorted(name for name in model if each in model[name])
        for name in ("c1", "c2", "c3", "c4"):
            known = index.get(name)
            assert (known.jobs if known else None) == model.get(name)


def test_a_client_that_stays_away_is_let_go_of_with_its_subscriptions() -> None:
    index = JobIndex()
    client = index.get_or_add("c1")
    index.subscribe(client, "a", (0, 0))
    index.leave(client, expires_at=10.0)
    assert index.expire(9.9) == []
    assert index.expire(10.0) == [client]
    assert (len(index), index.subscription_count, list(index.of_job("a"))) == (0, 0, [])
    assert index.expire(1e9) == []


def test_a_client_that_comes_back_is_kept_and_its_time_begins_anew_when_it_leaves_again() -> None:
    index = JobIndex()
    client = index.get_or_add("c1")
    index.leave(client, expires_at=10.0)
    client.subscriber = object()  # type: ignore[assignment]
    assert index.expire(10.0) == []
    index.leave(client, expires_at=20.0)
    client.subscriber = object()  # type: ignore[assignment]
    index.leave(client, expires_at=30.0)
    assert index.expire(25.0) == []
    assert index.expire(30.0) == [client]


def test_a_client_that_leaves_often_is_noted_once() -> None:
    index = JobIndex()
    client = index.get_or_add("c1")
    for number in range(1000):
        index.leave(client, expires_at=10.0 + number)
    assert len(index._expiring) == 1
    assert index.expire(1009.0) == [client]


def test_every_change_is_told_but_for_what_came_from_another_node() -> None:
    index = JobIndex()
    changes: list[tuple[str, str, tuple[int, int] | None]] = []
    index.on_change = lambda *change: changes.append(change)
    client = index.get_or_add("c1")
    index.subscribe(client, "a", (1, 0))
    index.subscribe(client, "a", (2, 0))
    index.subscribe(client, "b", (3, 0))
    index.unsubscribe(client, "b")
    index.unsubscribe(client, "b")
    assert changes == [
        ("c1", "a", (1, 0)),
        ("c1", "a", (2, 0)),
        ("c1", "b", (3, 0)),
        ("c1", "b", None),
    ]
    changes.clear()
    index.restore(client, {"b": (5, 1), "c": (6, 1)})
    assert client.jobs == {"b": (5, 1), "c": (6, 1)}
    assert (index.subscription_count, list(index.of_job("a"))) == (2, [])
    index.remove(client)
    assert (changes, index.subscription_count) == ([], 0)


def test_a_client_that_went_and_came_back_is_not_let_go_of_in_place_of_the_old_one() -> None:
    index = JobIndex()
    old = index.get_or_add("c1")
    index.leave(old, expires_at=10.0)
    index.remove(old)
    new = index.get_or_add("c1")
    index.expire(10.0)
    assert index.get("c1") is new


def test_a_job_may_have_many_clients() -> None:
    index = JobIndex()
    clients = [index.get_or_add(name) for name in ("c1", "c2", "c3")]
    for client in clients:
        index.subscribe(client, "a", (0, 0))
    for left, client in zip((2, 1, 0), clients, strict=True):
        index.unsubscribe(client, "a")
        assert len(list(index.of_job("a"))) == left
