import copy
import pickle
import re
import traceback

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.handshake import Handshake, Refusal, Refused, Target, parse_target
from jobqueue_broadcast.positions import Position
from tests import strategies as some

SECRET = "s3cr3t-T0ken"


def ask(request_target: str) -> tuple[Target, str | None] | Refused:
    try:
        return parse_target(request_target)
    except Refused as error:
        return error


def refused(request_target: str) -> Refusal:
    answer = ask(request_target)
    assert isinstance(answer, Refused)
    return answer.refusal


# --- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_target", "target", "token"),
    [
        ("/ws/monitor/m-1", Target(kind="monitor", id="m-1"), None),
        ("/ws/client/c-1", Target(kind="client", id="c-1"), None),
        ("/ws/client/c-1?", Target(kind="client", id="c-1"), None),
        ("/ws/monitor/monitor-id-17?token=abc", Target(kind="monitor", id="monitor-id-17"), "abc"),
        ("/ws/monitor/Aa0._~:-", Target(kind="monitor", id="Aa0._~:-"), None),
        ("/ws/monitor/%6D%2d1", Target(kind="monitor", id="m-1"), None),
        ("/ws/monitor/" + "x" * 128, Target(kind="monitor", id="x" * 128), None),
        ("/ws/monitor/m?token=a+b%2Bc%26d%3D", Target(kind="monitor", id="m"), "a b+c&d="),
        ("/ws/monitor/m?token=a=b", Target(kind="monitor", id="m"), "a=b"),
        ("/ws/monitor/m?t%6Fken=a", Target(kind="monitor", id="m"), "a"),
        ("/ws/monitor/m?token=", Target(kind="monitor", id="m"), ""),
        ("/ws/monitor/m?token", Target(kind="monitor", id="m"), ""),
        ("/ws/monitor/m?token=%C3%A9", Target(kind="monitor", id="m"), "é"),
        ("/ws/monitor/m?token=100%", Target(kind="monitor", id="m"), "100%"),
        ("/ws/monitor/m?a=1&a=2&&=&utm", Target(kind="monitor", id="m"), None),
        ("/ws/monitor/m?" + "&" * 8192, Target(kind="monitor", id="m"), None),
        (
            "/ws/monitor/m?topics=jobs,system_stats,jobs",
            Target(kind="monitor", id="m", topics=frozenset({"jobs", "system_stats"})),
            None,
        ),
        (
            "/ws/monitor/m?topics=jobs%3Astatus%2Cworkers",
            Target(kind="monitor", id="m", topics=frozenset({"jobs:status", "workers"})),
            None,
        ),
        ("/ws/client/c?jobs=b,a,b", Target(kind="client", id="c", jobs=("b", "a")), None),
        ("/ws/client/c?jobs=a%20b", Target(kind="client", id="c", jobs=("a b",)), None),
        ("/ws/client/c?resume=new", Target(kind="client", id="c", resume="new"), None),
        (
            "/ws/monitor/m?resume=e:7.2",
            Target(kind="monitor", id="m", resume=Position("e", 7, 2)),
            None,
        ),
    ],
)  # fmt: skip
def test_what_is_asked_for(request_target: str, target: Target, token: str | None) -> None:
    assert parse_target(request_target) == (target, token)


@pytest.mark.parametrize(
    "request_target",
    ["", "/", "*", "/ws", "/ws/monitor", "/ws/admin/x", "/WS/monitor/x", "//ws/monitor/x",
     "/ws/monitor/x/", "/ws/monitor/x/y", "/ws/%6Donitor/x", "/a/ws/monitor/x",
     "http://localhost/ws/monitor/x", "?/ws/monitor/x", "/ws/monitor?/x"],
)  # fmt: skip
def test_another_path_is_not_found(request_target: str) -> None:
    refusal = refused(request_target)
    assert refusal.status == 404
    assert refusal.text == "expected /ws/monitor/{monitor_id} or /ws/client/{client_id}\n"


@pytest.mark.parametrize(
    "request_target",
    ["/ws/monitor/", "/ws/monitor/?token=a", "/ws/monitor/" + "x" * 129, "/ws/monitor/a b",
     "/ws/monitor/a%20b", "/ws/monitor/a%2Fb", "/ws/monitor/a%0A", "/ws/monitor/a%00",
     "/ws/monitor/a\n", "/ws/monitor/%", "/ws/monitor/%2", "/ws/monitor/%zz", "/ws/monitor/%u0041",
     "/ws/monitor/%C3%A9", "/ws/monitor/é", "/ws/monitor/a#b", "/ws/monitor/..%2f", "/ws/monitor/+",
     "/ws/monitor/" + "x" * 8192, "/ws/client/%252e"],
)  # fmt: skip
def test_a_bad_id_is_refused(request_target: str) -> None:
    refusal = refused(request_target)
    assert refusal.status == 400
    assert refusal.text == "id: expected 1 to 128 characters of A-Z a-z 0-9 . _ ~ : -\n"


@pytest.mark.parametrize(
    ("request_target", "text"),
    [
        ("/ws/monitor/%FF", "expected percent-encoded UTF-8"),
        # An adapter that reads the request line as ASCII makes a surrogate of any other byte.
        ("/ws/monitor/\udcff", "expected percent-encoded UTF-8"),
        ("/ws/monitor/m?\udcff=1", "expected percent-encoded UTF-8"),
        ("/ws/monitor/m?token=%FF", "expected percent-encoded UTF-8"),
        ("/ws/monitor/m?%FF", "expected percent-encoded UTF-8"),
        ("/ws/monitor/m?token=%ED%A0%80", "expected percent-encoded UTF-8"),
        ("/ws/monitor/m?token=a&token=a", "token: expected once"),
        ("/ws/monitor/m?resume=new&tok%65n=a&resume=new", "resume: expected once"),
        ("/ws/monitor/m?topics=", "topics: expected known topics, separated by commas"),
        ("/ws/monitor/m?topics=jobs,", "topics: expected known topics, separated by commas"),
        ("/ws/monitor/m?topics=jobs,evil", "topics: expected known topics, separated by commas"),
        ("/ws/client/c?topics=jobs", "topics: expected on /ws/monitor/ only"),
        ("/ws/monitor/m?jobs=a", "jobs: expected on /ws/client/ only"),
        ("/ws/client/c?jobs=", "jobs: expected up to 1024 ids of 1 to 128 characters"),
        ("/ws/client/c?jobs=a,,b", "jobs: expected up to 1024 ids of 1 to 128 characters"),
        ("/ws/client/c?jobs=" + "x" * 129, "jobs: expected up to 1024 ids of 1 to 128 characters"),
        (
            "/ws/client/c?jobs=" + ",".join(map(str, range(1025))),
            "jobs: expected up to 1024 ids of 1 to 128 characters",
        ),
        ("/ws/client/c?resume=", "resume: expected `new` or a position"),
        ("/ws/client/c?resume=NEW", "resume: expected `new` or a position"),
        ("/ws/client/c?resume=e:x", "resume: expected `new` or a position"),
    ],
)
def test_a_bad_query_is_refused(request_target: str, text: str) -> None:
    assert refused(request_target) == Refusal(status=400, text=text + "\n")


def test_1024_jobs_are_not_too_many() -> None:
    target, _ = parse_target("/ws/client/c?jobs=" + ",".join(map(str, range(1024))))
    assert len(target.jobs) == 1024


_hostile = st.text(st.characters(), max_size=64) | st.text("%&=+,:/?#;acft0", max_size=64)
_queries = st.lists(
    st.sampled_from(["token", "topics", "jobs", "resume", "t%6Fken"]).flatmap(
        lambda name: (_hostile | st.sampled_from(["jobs", "new", "e:1"])).map(
            lambda value: f"{name}={value}"
        )
    ),
    max_size=3,
).map("&".join)


@given(
    _hostile
    | st.builds("/ws/monitor/{}?{}".format, _hostile | st.just("m"), _hostile | _queries)
    | st.builds("/ws/client/{}?{}".format, _hostile | st.just("c"), _hostile | _queries)
)
@example("/ws/monitor/" + "%41" * 2_730)
def test_any_target_is_served_or_refused_as_documented(request_target: str) -> None:
    answer = ask(request_target)
    if isinstance(answer, Refused):
        assert answer.refusal.status in {400, 404}
        assert re.fullmatch(r"[\x20-\x7e]{1,100}\n", answer.refusal.text)
        assert answer.refusal.headers == ()
        return
    target, token = answer
    assert re.fullmatch(r"[A-Za-z0-9._~:-]{1,128}", target.id)
    assert target.topics is None or target.kind == "monitor"
    assert not target.jobs or target.kind == "client"
    assert token is None or isinstance(token, str)


@given(st.sampled_from(["token", "topics", "jobs", "resume", "x"]), st.sampled_from(some.NASTY))
def test_a_refusal_never_repeats_the_query(name: str, junk: str) -> None:
    for query in (
        f"{name}={SECRET}{junk}",
        f"{name}={SECRET}&{name}={SECRET}",
        f"token={SECRET}&topics={SECRET}",
        f"token={SECRET}&resume={SECRET}",
        f"token={SECRET}&jobs=,",
        f"{SECRET}=%FF",
    ):
        for kind in ("monitor", "client"):
            answer = ask(f"/ws/{kind}/x?{query}")
            if isinstance(answer, Refused):
                assert SECRET not in "".join(traceback.format_exception(answer))
                assert SECRET not in repr(answer) + repr(answer.refusal)


# --- refusals ------------------------------------------------------------------------------------


def test_a_refusal_is_an_http_answer() -> None:
    error = Refused(503, "too many connections", ("Retry-After", "5"))
    assert str(error) == "503: too many connections"
    assert error.refusal == Refusal(
        status=503, text="too many connections\n", headers=(("Retry-After", "5"),)
    )


@pytest.mark.parametrize("status", [200, 101, 399, 600, 0, "401", None])
def test_a_refusal_has_an_error_status(status: int) -> None:
    with pytest.raises(InvalidArgument, match=r"Refusal.status: expected 400 to 599, got"):
        Refusal(status=status, text="no")


@pytest.mark.parametrize("status", [400, 401, 599])
def test_any_error_status_will_do(status: int) -> None:
    assert Refusal(status=status, text="no").status == status


# --- credentials ---------------------------------------------------------------------------------

TARGET = Target(kind="monitor", id="m-1")


def handshake(*authorization: str, query: str | None = None) -> Handshake:
    return Handshake(TARGET, {"authorization": list(authorization)}, "192.0.2.1", query)


@pytest.mark.parametrize(
    ("authorization", "query", "credential"),
    [
        ([], None, None),
        ([], "query", "query"),
        (["Bearer header"], None, "header"),
        (["Bearer header"], "query", "header"),
        (["bearer  header "], None, "header"),
        (["BEARER two words"], None, "two words"),
        (["Bearer"], "query", "query"),
        (["Bearer "], "query", "query"),
        (["Basic dXNlcg=="], "query", "query"),
        (["Basic dXNlcg=="], None, None),
        ([""], None, None),
    ],
)
def test_the_header_wins_over_the_query(
    authorization: list[str], query: str | None, credential: str | None
) -> None:
    assert handshake(*authorization, query=query).credential == credential


def test_without_the_header_there_is_the_query() -> None:
    assert Handshake(TARGET, {}, "192.0.2.1", "query").credential == "query"


def test_two_authorization_headers_are_refused() -> None:
    with pytest.raises(Refused) as caught:
        handshake(f"Bearer {SECRET}", f"Bearer {SECRET}")
    assert caught.value.refusal == Refusal(status=400, text="Authorization: expected once\n")


@pytest.mark.parametrize(
    "given_handshake",
    [handshake(f"Bearer {SECRET}"), handshake(query=SECRET), handshake(f"Basic {SECRET}")],
)
def test_a_credential_is_neither_shown_nor_copied(given_handshake: Handshake) -> None:
    assert repr(given_handshake) == "Handshake(monitor 'm-1' from 192.0.2.1)"
    assert f"{given_handshake}{[given_handshake]}".count(SECRET) == 0
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="a Handshake holds a credential"):
            leak(given_handshake)


def test_a_host_that_fails_shows_no_credential() -> None:
    """Not even where the error page shows local variables."""

    def authenticate(shown: Handshake) -> None:
        raise LookupError(f"nobody for {shown}")

    try:
        authenticate(handshake(f"Bearer {SECRET}"))
    except LookupError as error:
        report = traceback.TracebackException.from_exception(error, capture_locals=True)
        frames = list(report.stack)[1:]  # the first one is this test
        assert all(SECRET not in str(frame.locals) for frame in frames)
        assert SECRET not in str(report)
