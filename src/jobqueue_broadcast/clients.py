"""The clients: what each is greeted with, which jobs it follows, and which events it gets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from msgspec import Struct

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.catch_up import Reason, past, why_not
from jobqueue_broadcast.client_format import ClientJobAccepted, client_frame, has_client_format
from jobqueue_broadcast.clock import Clock
from jobqueue_broadcast.commands import ConnectionEstablished, ResyncRequired
from jobqueue_broadcast.delivery import Delivery, Group, Subscriber
from jobqueue_broadcast.errors import CloseCode, IdTaken
from jobqueue_broadcast.events import JobCompleted, JobEvent, JobFailed, encode
from jobqueue_broadcast.frames import Connection, Frame, reply_frame
from jobqueue_broadcast.history import History, Record
from jobqueue_broadcast.job_states import JobStates
from jobqueue_broadcast.positions import Position, with_position
from jobqueue_broadcast.subscriptions import Client, JobIndex
from jobqueue_broadcast.undelivered import UndeliveredOutcomes

__all__ = ["Clients"]

# A peer that reconnects repeats what was not answered; nobody has more submissions under way.
_SUBMISSIONS = 64


class Clients:
    """All clients that are connected or expected back.

    Args:
        delivery: Writes their frames.
        history: What they may resume over.
        jobs: The states newcomers start from.
        undelivered: Told which outcomes were taken.
        clock: For the timestamps of replies.
        retention: Seconds a client's subscriptions outlive its connection.
    """

    def __init__(
        self,
        delivery: Delivery,
        history: History,
        jobs: JobStates,
        undelivered: UndeliveredOutcomes,
        clock: Clock,
        retention: float,
    ) -> None:
        self._delivery = delivery
        self._history = history
        self._jobs = jobs
        self._undelivered = undelivered
        self._clock = clock
        self._retention = retention
        self._index = JobIndex()
        self._connected: dict[str, Subscriber] = {}
        self.encodings = 0
        self.resyncs = 0

    def __len__(self) -> int:
        return len(self._connected)

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(list(self._connected.values()))

    @property
    def away_count(self) -> int:
        """How many clients are expected back."""
        return len(self._index) - len(self._connected)

    @property
    def subscription_count(self) -> int:
        """How many subscriptions to jobs there are."""
        return self._index.subscription_count

    def get(self, client_id: str) -> Subscriber | None:
        """Return a connected client."""
        return self._connected.get(client_id)

    def jobs_of(self, client_id: str) -> frozenset[str]:
        """Return the jobs a client is subscribed to."""
        client = self._index.get(client_id)
        return frozenset(client.jobs) if client else frozenset()

    def check_id(self, client_id: str, principal: Principal) -> None:
        """Raise `IdTaken` when the id belongs to another principal."""
        client = self._index.get(client_id)
        if client is not None and client.owner not in (None, principal.id):
            raise IdTaken(f"client id {client_id!r} belongs to another principal")

    def add(
        self,
        client_id: str,
        connection: Connection,
        principal: Principal,
        resume: Position | Literal["new"] | None,
    ) -> Subscriber:
        """Register a client, greet it, and bring it up to now."""
        self.check_id(client_id, principal)
        returning = self._index.get(client_id) is not None
        client = self._index.get_or_add(client_id)
        if client.subscriber is not None:
            self._delivery.close(
                client.subscriber, CloseCode.REPLACED, "replaced by a newer connection"
            )
        client.owner = principal.id
        group = Group(connection.wire, resume is not None)
        subscriber = Subscriber(self._delivery, "client", client_id, principal, connection, group)
        group.members = (subscriber,)
        client.subscriber = self._connected[client_id] = subscriber
        greeting = ConnectionEstablished(timestamp=self._clock.now_ms())
        if isinstance(resume, Position):
            self._resume(client, subscriber, greeting, resume, returning)
        else:
            at = self._history.position if resume == "new" else None
            self._delivery.send_to(
                subscriber, [reply_frame(greeting, at), *self._start(client, client.jobs)]
            )
        return subscriber

    def remove(self, subscriber: Subscriber) -> None:
        """Unregister a client's connection; its subscriptions wait for it to come back."""
        if self._connected.get(subscriber.id) is subscriber:
            del self._connected[subscriber.id]
        client = self._index.get(subscriber.id)
        if client is not None and client.subscriber is subscriber:
            self._index.leave(client, self._clock.monotonic() + self._retention)

    def subscribe(self, client_id: str, job_id: str, before: Iterable[Struct] = ()) -> None:
        """Subscribe a client to a job and send it the job's state.

        Args:
            client_id: The client, connected or not.
            job_id: The job, which need not exist yet.
            before: Replies to send just before that state.
        """
        client = self._index.get_or_add(client_id)
        subscriber = client.subscriber
        if subscriber is not None and not subscriber.caught_up:
            subscriber.when_caught_up(lambda: self.subscribe(client_id, job_id, before))
            return
        frames = [reply_frame(reply) for reply in before]
        if job_id not in client.jobs:
            frames += self._start(client, [job_id])
        if subscriber is not None:
            self._delivery.send_to(subscriber, frames)
        elif client.owner is None:
            # Subscribed by the host ahead of the client's first connection.
            self._index.leave(client, self._clock.monotonic() + self._retention)

    def unsubscribe(self, client_id: str, job_id: str) -> None:
        """End a client's subscription to a job, if there is one."""
        client = self._index.get(client_id)
        if client is None:
            return
        if client.subscriber is not None and not client.subscriber.caught_up:
            client.subscriber.when_caught_up(lambda: self.unsubscribe(client_id, job_id))
            return
        self._index.unsubscribe(client, job_id)

    def submissions(self, client_id: str) -> dict[str, str | None]:
        """Return the recent submissions of a client, by `message_id`; the oldest are dropped."""
        client = self._index.get_or_add(client_id)
        if client.submissions is None:
            client.submissions = {}
        while len(client.submissions) >= _SUBMISSIONS:
            del client.submissions[next(iter(client.submissions))]
        return client.submissions

    def deliver(self, record: Record) -> bool:
        """Send a job event to the clients of its job; return whether one of them takes it now."""
        event = record.event
        assert isinstance(event, JobEvent)
        plain: Frame | None = None
        positioned: Frame | None = None
        taken = False
        for client in self._index.of_job(event.job_id):
            subscriber = client.subscriber
            if subscriber is None:
                continue
            if plain is None:
                plain = self._event_frame(event)
            if subscriber.group.positions:
                if positioned is None:
                    positioned = Frame(
                        with_position(plain.payload, self._history.position), event
                    )
                self._delivery.send(subscriber.group, positioned)
            else:
                self._delivery.send(subscriber.group, plain)
            taken = taken or not subscriber.behind
        return taken

    def tell_state(self, client_id: str, job_id: str) -> None:
        """Send a client the state of one of its jobs again."""
        client = self._index.get(client_id)
        if client is not None and client.subscriber is not None:
            self._delivery.send_to(client.subscriber, self._start(client, [job_id]))

    def tell_accepted(self, accepted: ClientJobAccepted) -> None:
        """Tell the clients of a job that a submit hook took it."""
        for client in self._index.of_job(accepted.job_id):
            if client.subscriber is None:
                # An acceptance is not in the history: owed to whoever resumes.
                client.states += 1
                at = (self._history.head, client.states)
                self._index.subscribe(client, accepted.job_id, at)
            else:
                self._tell_when_caught_up(client.subscriber, accepted)

    def end_job(self, job_id: str) -> None:
        """End every subscription to a job that is no longer known."""
        self._index.end_job(job_id)

    def expire(self, now: float) -> None:
        """Let go of the clients that did not come back in time."""
        self._index.expire(now)

    def keep_up_with(self, job_id: str) -> bool:
        """Tell whether a connected client of a job has all that was sent to it."""
        return any(
            client.subscriber is not None and not client.subscriber.behind
            for client in self._index.of_job(job_id)
        )

    def _start(self, client: Client, job_ids: Iterable[str]) -> list[Frame]:
        """Subscribe as of now, and return the frames of the jobs' states.

        They carry the client's present position, and only the last one a position that says the
        client has them all: if the connection breaks before it, they are sent again.
        """
        job_ids = list(job_ids)
        subscriber = client.subscriber
        states: list[Struct] = []
        for job_id in job_ids:
            state = self._jobs.get(job_id)
            if state is not None:
                states += state.latched()
                if state.outcome is not None and subscriber is not None:
                    self._undelivered.taken(job_id)
        before = Position(self._history.epoch, self._history.head, client.states)
        client.states += bool(states)
        after = Position(self._history.epoch, self._history.head, client.states)
        for job_id in job_ids:
            self._index.subscribe(client, job_id, (after.sequence, after.state))
        if subscriber is None:
            return []
        if not subscriber.group.positions:
            return [reply_frame(state) for state in states]
        return [
            reply_frame(state, after if state is states[-1] else before) for state in states
        ]

    def _tell_when_caught_up(self, subscriber: Subscriber, accepted: ClientJobAccepted) -> None:
        def tell() -> None:
            at = self._history.position if subscriber.group.positions else None
            self._delivery.send_to(subscriber, [reply_frame(accepted, at)])

        subscriber.when_caught_up(tell)

    def _resume(
        self,
        client: Client,
        subscriber: Subscriber,
        greeting: Struct,
        position: Position,
        returning: bool,
    ) -> None:
        """Continue after a position: retained events, then the states it did not get whole."""
        owed: set[str] = set()
        have = (position.sequence, position.state)
        if returning and why_not(self._history, position) is None:
            owed |= {job_id for job_id, since in client.jobs.items() if since > have}

        def frame_of(record: Record) -> Frame | None:
            event = record.event
            if not (record.told and isinstance(event, JobEvent) and has_client_format(event)):
                return None
            since = client.jobs.get(event.job_id)
            if since is None or since[0] >= record.sequence or event.job_id in owed:
                return None
            if isinstance(event, JobCompleted | JobFailed):
                self._undelivered.taken(event.job_id)
            payload = self._event_frame(event).payload
            at = Position(self._history.epoch, record.sequence)
            return Frame(with_position(payload, at), event)

        def restart(reason: Reason) -> list[Frame]:
            self.resyncs += 1
            owed.update(client.jobs)
            required = ResyncRequired(
                timestamp=self._clock.now_ms(),
                reason=reason,
                position=str(self._history.position),
            )
            return [reply_frame(required)]

        def finish() -> list[Frame]:
            frames = self._start(client, owed)
            owed.clear()
            return frames

        self._delivery.catch_up(
            subscriber,
            past(
                self._history,
                position,
                greeting=[reply_frame(greeting, position)],
                frame_of=frame_of,
                restart=restart,
                finish=finish,
                # Without its subscriptions nothing can be said of what it missed.
                reason=None if returning else why_not(self._history, position) or "trimmed",
            ),
        )

    def _event_frame(self, event: JobEvent) -> Frame:
        self.encodings += 1
        return Frame(encode(client_frame(event)), event)
