"""A broadcaster, and peers that talk to it: what the tests of commands and answers share."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from jobqueue_broadcast.asks import Ask, Hooks
from jobqueue_broadcast.auth import ANONYMOUS, Principal
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.events import JobCompleted, JobData, JobSubmitted
from jobqueue_broadcast.session import Session, SessionLimits
from jobqueue_broadcast.testing import ManualClock, RecordingConnection

__all__ = ["ALICE", "BOB", "NOW", "Bench", "Talk", "error", "raising", "settle"]

NOW = 1_642_700_000_000
ALICE, BOB = Principal(id="alice"), Principal(id="bob")


def settle(ask: Ask | None) -> None:
    """Do as an adapter does."""
    while ask is not None:
        try:
            result = ask.call()
        except Exception as error:  # noqa: BLE001 - as an adapter does
            ask = ask.failed(error)
        else:
            ask = ask.answered(result)


def raising(error: Exception) -> Callable[..., Any]:
    def hook(*_: Any) -> Any:
        raise error

    return hook


class Bench:
    def __init__(self, **options: Any) -> None:
        self.clock = ManualClock()
        self.broadcaster = EventBroadcaster(clock=self.clock, **options)
        self.hooks: dict[str, Any] = {}
        self.limits = SessionLimits()
        self.errors: Counter[str] = Counter()

    def session(self, subscriber: Any) -> Session:
        hooks = Hooks(**self.hooks)
        return Session(self.broadcaster, subscriber, hooks, self.limits, self.errors)

    def monitor(self) -> "Talk":
        connection = RecordingConnection()
        return Talk(self.session(self.broadcaster.add_monitor("m", connection)), connection)

    def client(
        self, principal: Principal = ANONYMOUS, name: str = "c", resume: Any = None
    ) -> "Talk":
        connection = RecordingConnection()
        added = self.broadcaster.add_client(name, connection, principal=principal, resume=resume)
        return Talk(self.session(added), connection)

    def submit(self, job_id: str = "a") -> None:
        data = JobData(id=job_id, job_type="x", created_at=1)
        self.broadcaster.broadcast(JobSubmitted(job_id=job_id, job_data=data))

    def complete(self, job_id: str = "a") -> None:
        self.broadcaster.broadcast(JobCompleted(job_id=job_id, worker_id="w", result=1))


class Talk:
    """A session and its connection."""

    def __init__(self, session: Session, connection: RecordingConnection) -> None:
        self.session = session
        self.connection = connection
        connection.take()

    def ask(self, **command: Any) -> Ask | None:
        return self.session.receive(msgspec.json.encode(command).decode())

    def say(self, **command: Any) -> list[dict[str, Any]]:
        settle(self.ask(**command))
        return self.connection.take()


def error(code: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "error", "timestamp": NOW, "error": text, "code": code} | fields
