"""What an opening handshake asks for, and why it is refused (wire protocol, section 1).

Sans-I/O: an adapter gives the request's target and headers, and gets a `Target` to serve or raises
a `Refused` that knows the HTTP answer. Nothing of the query is ever part of a message or a repr.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NoReturn, TypeAlias
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from jobqueue_broadcast.errors import InvalidArgument, UnknownTopic
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.topics import parse_topics

__all__ = ["Handshake", "Kind", "Refusal", "Refused", "Target", "parse_target"]

Kind: TypeAlias = Literal["monitor", "client"]

_ID = re.compile(r"[A-Za-z0-9._~:-]{1,128}")
_PATH = re.compile(r"/ws/(monitor|client)/([^/]*)")
_PARAMETERS = frozenset({"token", "topics", "jobs", "resume"})
_MAX_JOBS = 1024


class Refusal(Struct, frozen=True, kw_only=True):
    """An HTTP answer in place of the upgrade: a status, a short plain text, further headers."""

    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.status not in range(400, 600):
            raise InvalidArgument(f"Refusal.status: expected 400 to 599, got {self.status!r}")


class Refused(Exception):
    """The handshake is refused; carries the answer to give."""

    def __init__(self, status: int, text: str, *headers: tuple[str, str]) -> None:
        super().__init__(f"{status}: {text}")
        self.refusal = Refusal(status=status, text=text + "\n", headers=headers)


class Target(Struct, frozen=True, kw_only=True):
    """What a handshake asks for.

    Attributes:
        kind: Which endpoint.
        id: The monitor's or client's id.
        topics: The topics a monitor narrows to; `None`: all.
        jobs: The jobs a client subscribes to at once.
        resume: `None` without positions, `"new"` to be given positions from now on, or the
            position to continue after.
    """

    kind: Kind
    id: str
    topics: frozenset[str] | None = None
    jobs: tuple[str, ...] = ()
    resume: Position | Literal["new"] | None = None


class Handshake:
    """An opening handshake, as `authenticate` sees it.

    Attributes:
        target: What it asks for.
        headers: Header names in lower case, to their values in order.
        remote: The peer's address, as far as the adapter knows it.
        credential: The bearer token: of the `Authorization` header, else of the query; `None`
            without. Not part of the repr.
    """

    __slots__ = ("credential", "headers", "remote", "target")

    def __init__(
        self,
        target: Target,
        headers: Mapping[str, Sequence[str]],
        remote: str,
        query_token: str | None,
    ) -> None:
        self.target = target
        self.headers = headers
        self.remote = remote
        self.credential = _bearer(headers.get("authorization", ())) or query_token

    def __repr__(self) -> str:
        return f"Handshake({self.target.kind} {self.target.id!r} from {self.remote})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Handshake holds a credential: it cannot be pickled or copied")


def parse_target(request_target: str) -> tuple[Target, str | None]:
    """Return what a request target asks for, and the token in its query.

    Raises:
        Refused: 404 for another path; 400 for a bad id, query, topic or position.
    """
    path, _, query = request_target.partition("?")
    matched = _PATH.fullmatch(path)
    if matched is None:
        raise Refused(404, "expected /ws/monitor/{monitor_id} or /ws/client/{client_id}")
    kind: Kind = "monitor" if matched[1] == "monitor" else "client"
    parameters = _parse_query(query)
    resume = parameters.get("resume")
    target = Target(
        kind=kind,
        id=_parse_id(matched[2]),
        topics=_parse_topics(parameters.get("topics"), kind),
        jobs=_parse_jobs(parameters.get("jobs"), kind),
        resume=None if resume is None else _parse_resume(resume),
    )
    return target, parameters.get("token")


def _unquote(text: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError:  # Decoding %ff; or encoding the surrogate an adapter makes of a raw byte.
        raise Refused(400, "expected percent-encoded UTF-8") from None


def _parse_query(query: str) -> dict[str, str]:
    """Return the known parameters; others are ignored, the same one twice is refused."""
    parameters: dict[str, str] = {}
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        name = _unquote(name.replace("+", " "))
        if name not in _PARAMETERS:
            continue
        if name in parameters:
            raise Refused(400, f"{name}: expected once")
        parameters[name] = _unquote(value.replace("+", " "))
    return parameters


def _parse_id(text: str) -> str:
    name = _unquote(text)
    if not _ID.fullmatch(name):
        raise Refused(400, "id: expected 1 to 128 characters of A-Z a-z 0-9 . _ ~ : -")
    return name


def _parse_topics(text: str | None, kind: Kind) -> frozenset[str] | None:
    if text is None:
        return None
    if kind != "monitor":
        raise Refused(400, "topics: expected on /ws/monitor/ only")
    try:
        return parse_topics(text.split(","))
    except UnknownTopic:
        raise Refused(400, "topics: expected known topics, separated by commas") from None


def _parse_jobs(text: str | None, kind: Kind) -> tuple[str, ...]:
    if text is None:
        return ()
    if kind != "client":
        raise Refused(400, "jobs: expected on /ws/client/ only")
    # The same job twice is one subscription; the order is kept for the replies.
    jobs = tuple(dict.fromkeys(text.split(",")))
    if len(jobs) > _MAX_JOBS or not all(1 <= len(job) <= 128 for job in jobs):
        raise Refused(400, f"jobs: expected up to {_MAX_JOBS} ids of 1 to 128 characters")
    return jobs


def _parse_resume(text: str) -> Position | Literal["new"]:
    if text == "new":
        return "new"
    try:
        return Position.parse(text)
    except InvalidArgument:
        raise Refused(400, "resume: expected `new` or a position") from None


def _bearer(values: Sequence[str]) -> str | None:
    """Return the token of an `Authorization: Bearer` header.

    Raises:
        Refused: There are several, so that it is not clear which was meant.
    """
    if len(values) > 1:
        raise Refused(400, "Authorization: expected once")
    for value in values:
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
    return None
