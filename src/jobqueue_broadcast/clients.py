"""The clients: what each is greeted with, which jobs it follows, and which events it gets."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Literal

from msgspec import Struct

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.catch_up import Reason, past, why_not
from jobqueue_broadcast.client_format import ClientJobAccepted, client_frame, has_client_format
from jobqueue_broadcast.clock import Clock
from jobqueue_broadcast.commands import ConnectionEstablished, ResyncRequired
from jobqueue_broadcast.delivery import Delivery, Group, Subscriber
from jobqueue_broadcast.errors import IdTaken, InvalidArgument
from jobqueue_broadcast.events import JobEvent, encode
from jobqueue_broadcast.frames import Connection, Frame, reply_frame
from jobqueue_broadcast.history import History, Record
from jobqueue_broadcast.job_states import JobStates
from jobqueue_broadcast.positions import Position, with_position
from jobqueue_broadcast.subscriptions import Client, JobIndex, OnChange
from jobqueue_broadcast.undelivered import UndeliveredOutcomes

__all__ = ["Clients"]

logger = logging.getLogger("jobqueue_broadcast")

# A peer that reconnects repeats what was not answered; nobody has more submissions under way.
_SUBMISSIONS = 64

# In place of the sequence a subscription began at: the state of its job is still to be sent. Beyond
# any sequence, so that no event of the job is sent before it.
_OWED = 10**41


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
        client = self._index.get_or_add(client_id)
        # A host may have subscribed it ahead of its first connection, or long after its last one.
        returning = client.owner is not None
        if client.subscriber is not None:
            self._delivery.close_replaced(client.subscriber)
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

    def share_with(self, on_change: OnChange) -> None:
        """Tell of every change of a subscription, for the node a client may go to."""
        self._index.on_change = on_change

    def adopt(
        self,
        client_id: str,
        principal: Principal,
        jobs: dict[str, tuple[int, int]],
        resume: Position | Literal["new"] | None,
    ) -> None:
        """Take over a client that may have been on another node, before it is added here."""
        client = self._index.get_or_add(client_id)
        client.owner = principal.id
        sent = resume.state if isinstance(resume, Position) else 0
        client.states = max(client.states, sent, *(since[1] for since in jobs.values()), 0)
        self._index.restore(client, jobs)

    def let_go(self, client_id: str) -> None:
        """Forget a client that is now on another node."""
        client = self._index.get(client_id)
        if client is not None and client.subscriber is None:
            self._index.remove(client)

    def remove(self, subscriber: Subscriber) -> None:
        """Unregister a client's connection; its subscriptions wait for it to come back."""
        if self._connected.get(subscriber.id) is subscriber:
            del self._connected[subscriber.id]
        client = self._index.get(subscriber.id)
        if client is not None and client.subscriber is subscriber:
            self._expect_back(client)

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
            self._subscribe_later(client, subscriber, job_id, list(before))
            return
        frames = [reply_frame(reply) for reply in before]
        if job_id not in client.jobs:
            frames += self._start(client, [job_id])
        if subscriber is not None:
            self._delivery.send_to(subscriber, frames)
        elif client.owner is None:
            # Subscribed by the host ahead of the client's first connection.
            self._expect_back(client)

    def subscribe_submitter(self, client_id: str, owner: str | None, job_id: str) -> None:
        """Subscribe the client that submitted a job, if it is known here and still its owner's."""
        client = self._index.get(client_id)
        if client is not None and client.owner == owner:
            self.subscribe(client_id, job_id)

    def expect(self, client_id: str, principal: Principal) -> None:
        """Expect a client back that may have been let go of while the host had its submission."""
        client = self._index.get_or_add(client_id)
        if client.owner is None:
            client.owner = principal.id
            self._expect_back(client)

    def unsubscribe(self, client_id: str, job_id: str) -> None:
        """End a client's subscription to a job, if there is one."""
        client = self._index.get(client_id)
        if client is not None:
            self._index.unsubscribe(client, job_id)

    def submissions(self, client_id: str) -> dict[str, str | None]:
        """Return the recent submissions of a client, by `message_id`; the oldest are dropped."""
        client = self._index.get_or_add(client_id)
        if client.submissions is None:
            client.submissions = {}
        while len(client.submissions) > _SUBMISSIONS:
            del client.submissions[next(iter(client.submissions))]
        return client.submissions

    def deliver(self, record: Record) -> bool:
        """Send a job event to the clients of its job; return whether one of them takes it now."""
        event: Any = record.event  # a job event: to tell that to the type checkers costs a call
        plain: Frame | None = None
        positioned: Frame | None = None
        taken = False
        for client in self._index.of_job(event.job_id):
            subscriber = client.subscriber
            if subscriber is None:
                continue
            if plain is None:
                plain = self._event_frame(event)
                if plain is None:
                    return False
            if subscriber.group.positions:
                if positioned is None:
                    positioned = Frame(with_position(plain.payload, self._history.position), event)
                self._delivery.send(subscriber.group, positioned)
            else:
                self._delivery.send(subscriber.group, plain)
            taken = taken or not subscriber.behind
        return taken

    def tell_state(self, client_id: str, job_id: str) -> None:
        """Send a client the state of one of its jobs again."""
        client = self._index.get(client_id)
        if client is None or client.subscriber is None:
            return
        if client.subscriber.caught_up:
            self._delivery.send_to(client.subscriber, self._start(client, [job_id]))
        else:
            self._index.subscribe(client, job_id, (_OWED, 0))

    def tell_accepted(self, accepted: ClientJobAccepted) -> None:
        """Tell the clients of a job that a submit hook took it."""
        for client in self._index.of_job(accepted.job_id):
            subscriber = client.subscriber
            if subscriber is None or not subscriber.caught_up:
                self._index.subscribe(client, accepted.job_id, (_OWED, 0))
                continue
            # An acceptance is not in the history: like a state, it is owed to who resumes without.
            client.states += 1
            at = Position(self._history.epoch, self._history.head, client.states)
            self._index.subscribe(client, accepted.job_id, (at.sequence, at.state))
            frame = reply_frame(accepted, at if subscriber.group.positions else None)
            self._delivery.send_to(subscriber, [frame])

    def resync(self, reason: Reason, learned: Collection[str]) -> None:
        """Bring everyone connected up to now: events were missed on this node.

        Args:
            reason: Why they were.
            learned: The jobs whose outcome is known by now, and was not sent.

        A client that did not opt in to positions is sent those outcomes and nothing twice.
        """
        for subscriber in list(self._connected.values()):
            client = self._index.get(subscriber.id)
            # One that catches up reads the history, and finds out by itself.
            if client is None or not subscriber.caught_up:
                continue
            if subscriber.group.positions:
                frames = [self._required(reason), *self._start(client, client.jobs)]
            else:
                frames = self._outcomes(job for job in client.jobs if job in learned)
            self._delivery.send_to(subscriber, frames)

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
        subscriber = client.subscriber
        before = Position(self._history.epoch, self._history.head, client.states)
        after = Position(before.epoch, before.sequence, before.state + 1)
        states: list[Struct] = []
        for job_id in list(job_ids):
            state = self._jobs.get(job_id)
            latched = state.latched() if state is not None else []
            if state is not None and state.outcome is not None and subscriber is not None:
                self._undelivered.taken(job_id)
            # Where there is no state yet, none can be owed: all its events are still to come.
            self._index.subscribe(client, job_id, (after.sequence, after.state if latched else 0))
            states += latched
        client.states += bool(states)
        if subscriber is None:
            return []
        if not subscriber.group.positions:
            return [reply_frame(state) for state in states]
        return [reply_frame(state, after if state is states[-1] else before) for state in states]

    def _subscribe_later(
        self, client: Client, subscriber: Subscriber, job_id: str, before: list[Struct]
    ) -> None:
        """Subscribe a client that catches up: now, so that it is not lost with the connection.

        The job's state is sent after the past, with the answer to whoever asked. Its number tells
        this subscription from another to the same job, should it end and begin again by then.
        """
        owed = (_OWED, 0)
        if before:
            client.states += 1
            owed = (_OWED, client.states)
        if job_id not in client.jobs:
            self._index.subscribe(client, job_id, owed)
        if not before:
            return

        def answer() -> None:
            frames = [reply_frame(reply) for reply in before]
            if client.jobs.get(job_id) == owed:
                frames += self._start(client, [job_id])
            self._delivery.send_to(subscriber, frames)

        subscriber.when_caught_up(answer)

    def _expect_back(self, client: Client) -> None:
        self._index.leave(client, self._clock.monotonic() + self._retention)

    def _resume(
        self,
        client: Client,
        subscriber: Subscriber,
        greeting: Struct,
        position: Position,
        returning: bool,
    ) -> None:
        """Continue after a position: retained events, then the states it did not get whole."""
        have = (position.sequence, position.state)
        for job_id, since in client.jobs.items():
            if since[0] == _OWED or (since[1] and since > have):
                self._index.subscribe(client, job_id, (_OWED, 0))

        def frame_of(record: Record) -> Frame | None:
            event = record.event
            if not (record.told and isinstance(event, JobEvent) and has_client_format(event)):
                return None
            since = client.jobs.get(event.job_id)
            if since is None or since[0] >= record.sequence:
                return None
            if event.is_outcome:
                self._undelivered.taken(event.job_id)
            frame = self._event_frame(event)
            if frame is None:
                return None
            at = Position(self._history.epoch, record.sequence)
            return Frame(with_position(frame.payload, at), event)

        def restart(reason: Reason) -> list[Frame]:
            for job_id in client.jobs:
                self._index.subscribe(client, job_id, (_OWED, 0))
            return [self._required(reason)]

        def finish() -> list[Frame]:
            owed = [job_id for job_id, since in client.jobs.items() if since == (_OWED, 0)]
            return self._start(client, owed)

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

    def _required(self, reason: Reason) -> Frame:
        self.resyncs += 1
        required = ResyncRequired(
            timestamp=self._clock.now_ms(), reason=reason, position=str(self._history.position)
        )
        return reply_frame(required)

    def _outcomes(self, job_ids: Iterable[str]) -> list[Frame]:
        frames: list[Frame] = []
        for job_id in job_ids:
            state = self._jobs.get(job_id)
            if state is not None and state.ended_by is not None:
                self._undelivered.taken(job_id)
                frames.append(reply_frame(client_frame(state.ended_by)))
        return frames

    def _event_frame(self, event: JobEvent) -> Frame | None:
        """Return what clients are told of an event; nothing when a host's format fails.

        `broadcast` has tried that format and would have raised; this event is another node's.
        """
        self.encodings += 1
        try:
            return Frame(encode(client_frame(event)), event)
        except InvalidArgument:
            logger.exception("clients are not told of %s", type(event).__name__)
            return None
