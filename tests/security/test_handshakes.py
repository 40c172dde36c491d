"""X1: thousands of handshakes that must not be let in, with bare sockets against one server."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from jobqueue_broadcast import EventBroadcaster, StaticTokens
from jobqueue_broadcast.adapters.websockets import serve
from tests.adapters.raw import KEY, Raw, in_loop, status_of, until
from tests.adapters.raw import request as good_request

TOKEN = "let-me-in"

# Nothing else is ever answered: the wire protocol's section 1, and HTTP itself. 0: no answer.
ALLOWED = {0, 400, 401, 403, 404, 405, 414, 426, 431, 505}


class Attempt:
    """One handshake in the making: good, until faults are added."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.method = "GET"
        self.target = f"/ws/{rng.choice(['monitor', 'client'])}/m{rng.randrange(1000)}"
        self.query: list[str] = []
        self.version = "HTTP/1.1"
        self.headers = [
            ("Host", "localhost"),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", KEY),
            ("Sec-WebSocket-Version", "13"),
            ("Authorization", f"Bearer {TOKEN}"),
        ]
        self.line_end = "\r\n"

    def set(self, name: str, *values: str) -> None:
        self.headers = [header for header in self.headers if header[0] != name]
        self.headers += [(name, value) for value in values]

    def text(self, most: int = 40) -> str:
        return "".join(self.rng.choice(JUNK) for _ in range(self.rng.randrange(most)))

    def encode(self) -> bytes:
        query = "?" + "&".join(self.query) if self.query else ""
        lines = [f"{self.method} {self.target}{query} {self.version}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return (self.line_end.join(lines) + self.line_end * 2).encode("latin-1", "replace")


JUNK = "aZ09._~:-%?&=/#\\ \t\"'<>{}[]()@;,+*!$^|`\x00\x7f\x80\xe9\xff"


def wrong_token(a: Attempt) -> None:
    a.set("Authorization", "Bearer " + a.rng.choice([
        TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "", " ", "null", "x" * a.rng.randrange(7000),
        TOKEN + "\xe9", "\xff" * 20, a.text(), f"{TOKEN} {TOKEN}", f'"{TOKEN}"',
    ]))  # fmt: skip


def no_token(a: Attempt) -> None:
    a.set("Authorization")
    if a.rng.random() < 0.5:
        a.headers.append((a.rng.choice(["Cookie", "X-Token", "Proxy-Authorization"]), TOKEN))


def other_scheme(a: Attempt) -> None:
    schemes = ["Basic", "Bearer:", "Bearer,", "Digest", "Token", "", "BearerBearer"]
    a.set("Authorization", f"{a.rng.choice(schemes)} {TOKEN}")


def two_tokens(a: Attempt) -> None:
    a.set("Authorization", f"Bearer {TOKEN}", f"Bearer {a.rng.choice([TOKEN, 'x'])}")


def two_query_tokens(a: Attempt) -> None:
    a.set("Authorization")
    a.query += [f"token={TOKEN}", f"{a.rng.choice(['token', '%74oken'])}=x"]


def query_junk(a: Attempt) -> None:
    a.set("Authorization")
    a.query.append("token=" + a.text().replace(" ", ""))


def bad_encoding(a: Attempt) -> None:
    a.target = "/ws/monitor/" + a.rng.choice([
        "%ff", "%C0%AE", "%2e%2e%2fetc", "%00", "a%0d%0aX:y", "%ED%A0%80", "%", "%zz", "a%20b",
    ])  # fmt: skip


def bad_origin(a: Attempt) -> None:
    a.set("Origin", *a.rng.choice([
        ["http://evil.example"], ["null"], ["http://localhost", "http://localhost"], [a.text()],
        ["http://localhost.evil.example"], ["http://evil.example#localhost"], ["javascript:1"],
        ["http://localhost@evil.example"], ["http://[::"], ["http://localhost:99999"], ["//"],
    ]))  # fmt: skip


def odd_method(a: Attempt) -> None:
    methods = ["POST", "HEAD", "OPTIONS", "CONNECT", "PUT", "get", "GETX", "", "G\x00T", "PRI"]
    a.method = a.rng.choice(methods)


def odd_path(a: Attempt) -> None:
    a.target = a.rng.choice([
        "/", "*", "/ws", "/ws/", "/ws/monitor", "/ws/monitors/m", "/WS/MONITOR/m", "//ws/monitor/m",
        "/ws/monitor/m/", "/ws/../ws/monitor/m", "http://localhost/ws/monitor/m", "ws/monitor/m",
        "/ws/monitor/m;x", "/ws/admin/m", "/ws/monitor//m", "/" + a.text().replace(" ", ""), "",
    ])  # fmt: skip


def bad_id(a: Attempt) -> None:
    a.target = "/ws/client/" + a.rng.choice(
        ["", "x" * 129, "a,b", "a@b", "<script>", "a%2Fb", "\xe9"]
    )


def bad_query(a: Attempt) -> None:
    a.query.append(a.rng.choice([
        "topics=", "topics=nope", "resume=", "resume=1", "resume=a:b:c:d", "resume=x:-1",
        "resume=x:" + "9" * 5000, "topics=jobs&topics=jobs", "topics=%ff",
        "resume=%00",
    ]))  # fmt: skip
    a.target = "/ws/monitor/m"


def bad_upgrade(a: Attempt) -> None:
    name = a.rng.choice(["Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version"])
    a.set(name, *a.rng.choice([[], ["x"], ["", ""], ["13", "13"], [a.text()], ["A" * 24]]))


def bad_http(a: Attempt) -> None:
    a.version = a.rng.choice(["HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ", "HTTP", "", "http/1.1", "\xff"])


def bad_lines(a: Attempt) -> None:
    a.line_end = a.rng.choice(["\n", "\r", "\r\r\n", " "])


def header_flood(a: Attempt) -> None:
    count, size = a.rng.choice([(200, 10), (3, 7000), (1, 9000), (100, 400)])
    a.headers = [(f"X-{n}", "x" * size) for n in range(count)] + a.headers


def broken_header(a: Attempt) -> None:
    a.headers.insert(0, a.rng.choice([
        ("Bad Name", "x"), ("", "x"), ("X\x00", "x"), ("X", "a\x00b"), (" folded", "x"),
        ("Content-Length", "5"), ("Transfer-Encoding", "chunked"), ("Content-Length", "-1"),
    ]))  # fmt: skip


FAULTS: list[Callable[[Attempt], None]] = [
    wrong_token, no_token, other_scheme, two_tokens, two_query_tokens, query_junk, bad_encoding,
    bad_origin, odd_method, odd_path, bad_id, bad_query, bad_upgrade, bad_http, bad_lines,
    header_flood, broken_header,
]  # fmt: skip


def attempts(count: int, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    made = []
    for number in range(count):
        attempt = Attempt(rng)
        FAULTS[number % len(FAULTS)](attempt)
        for _ in range(rng.choice([0, 0, 1, 2])):
            rng.choice(FAULTS)(attempt)
        made.append(attempt.encode())
    return made


async def try_all(port: int, tried: list[bytes]) -> Counter[int]:
    got: Counter[int] = Counter()
    todo = iter(tried)

    async def attacker() -> None:
        for sent in todo:
            with await Raw.connect(port, sent) as peer:
                got[await peer.status()] += 1

    await asyncio.gather(*(attacker() for _ in range(100)))
    return got


@pytest.mark.parametrize("count", [3_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_nobody_gets_in_and_nothing_breaks(count: int, caplog: pytest.LogCaptureFixture) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        tokens = StaticTokens({TOKEN: "somebody"})
        async with serve(
            broadcaster, "127.0.0.1", 0, authenticate=tokens, open_timeout=0.5
        ) as server:
            target = good_request("/ws/monitor/m", f"Authorization: Bearer {TOKEN}")
            assert await status_of(server.port, target) == 101
            await until(lambda: not broadcaster.subscribers())
            got = await try_all(server.port, attempts(count, seed=1))
            print(f"X1: {sum(got.values())} handshakes tried, {got[101]} accepted, {got[500]} "
                  f"answered 500; answers: {dict(sorted(got.items()))}")  # fmt: skip
            assert sum(got.values()) == count
            assert got[101] == got[500] == 0
            assert set(got) <= ALLOWED
            assert len(got) >= 8
            assert broadcaster.subscribers() == []
            assert await status_of(server.port, target) == 101

    scenario()
    assert not [record for record in caplog.records if record.exc_info]
