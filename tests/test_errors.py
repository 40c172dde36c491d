from copy import copy

import pytest

from jobqueue_broadcast import errors
from jobqueue_broadcast.errors import (
    BroadcastError,
    CloseCode,
    CommandFailed,
    ConnectionEnded,
    ConnectRefused,
    HookRefusal,
    InvalidArgument,
    JobFailedError,
    NotBound,
    WrongThread,
)


@pytest.mark.parametrize(
    ("code", "number", "reconnect"),
    [
        (CloseCode.GOING_AWAY, 1001, True),
        (CloseCode.UNSUPPORTED_DATA, 1003, False),
        (CloseCode.INVALID_DATA, 1007, False),
        (CloseCode.MESSAGE_TOO_BIG, 1009, False),
        (CloseCode.UNAUTHENTICATED, 4401, False),
        (CloseCode.FORBIDDEN, 4403, False),
        (CloseCode.TOO_SLOW, 4408, True),
        (CloseCode.REPLACED, 4409, False),
        (CloseCode.TOO_MANY_COMMANDS, 4429, True),
    ],
)
def test_close_codes_are_those_of_the_protocol(
    code: CloseCode, number: int, reconnect: bool
) -> None:
    assert code == number
    assert code.reconnect is reconnect


def test_there_is_no_other_close_code() -> None:
    assert len(CloseCode) == 9


def test_the_tree_is_the_one_that_is_drawn() -> None:
    """Each line of the drawing names one exception, under its parent."""
    drawn = {}
    parents = ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip(" │├└─").partition(" ")[0]
        if not hasattr(errors, name):
            continue
        depth = (len(line) - len(line.lstrip(" │├└─"))) // 4 - 1  # the whole block is indented
        drawn[name] = parents[depth]
        parents[depth + 1 :] = [name]
    real = {
        name: cls.__mro__[1].__name__
        for name in errors.__all__
        if isinstance(cls := getattr(errors, name), type) and issubclass(cls, BroadcastError)
    }
    assert drawn == real


@pytest.mark.parametrize(
    ("ours", "builtin"),
    [(InvalidArgument, ValueError), (WrongThread, RuntimeError), (NotBound, RuntimeError)],
)
def test_misuse_is_also_a_builtin_error(ours: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(ours, builtin)


def test_a_hook_refusal_forbids_unless_told_otherwise() -> None:
    refusal = HookRefusal("not today")
    assert (refusal.code, refusal.error, str(refusal)) == ("forbidden", "not today", "not today")
    assert HookRefusal("slow down", "rate_limited").code == "rate_limited"


def test_what_peers_raise_says_what_happened() -> None:
    refused = ConnectRefused(401, "who are you?")
    assert (refused.status, refused.reason) == (401, "who are you?")
    assert str(refused) == "the server refused the connection with HTTP 401: who are you?"
    ended = ConnectionEnded(4409, "replaced")
    assert (ended.code, ended.reason) == (4409, "replaced")
    assert str(ended) == "the server closed the connection with code 4409: replaced"
    failed = CommandFailed("not_found", "no such job")
    assert (failed.code, failed.error) == ("not_found", "no such job")
    assert str(failed) == "not_found: no such job"
    job = JobFailedError("job-1", "out of memory")
    assert (job.job_id, job.error) == ("job-1", "out of memory")
    assert str(job) == "job job-1 failed: out of memory"


@pytest.mark.parametrize(
    "error",
    [
        ConnectRefused(403, "no"),
        ConnectionEnded(4401, "expired"),
        CommandFailed("not_found", "no such job"),
        JobFailedError("job-1", "out of memory"),
        HookRefusal("no more today", "rate_limited"),
    ],
)
def test_errors_can_be_copied_and_so_travel_between_processes(error: BroadcastError) -> None:
    travelled = copy(error)
    assert type(travelled) is type(error)
    assert vars(travelled) == vars(error)
    assert str(travelled) == str(error)
