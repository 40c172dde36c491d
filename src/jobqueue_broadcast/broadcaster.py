"""What a host and its adapters call: `EventBroadcaster`, which owns the parts and joins them.

An event goes to the backplane and comes back with its sequence, to the `Intake`. No I/O happens
here, no task is started and no clock read but the one given: an adapter binds an event loop with
`bind` and calls `tick` about twice a second.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Literal

from jobqueue_broadcast.auth import ANONYMOUS, Principal
from jobqueue_broadcast.backplane import Backplane, InProcessBackplane, RemoteBackplane
from jobqueue_broadcast.claims import Claims, Grant
from jobqueue_broadcast.client_format import client_frame, is_declared_format
from jobqueue_broadcast.clients import Clients
from jobqueue_broadcast.clock import Clock, SystemClock
from jobqueue_broadcast.commands import JobInfo
from jobqueue_broadcast.control import (
    Control,
    JobAccepted,
    PrincipalRevoked,
    PrincipalUnrevoked,
)
from jobqueue_broadcast.delivery import Delivery, Subscriber
from jobqueue_broadcast.errors import (
    BackplaneFull,
    CloseCode,
    InvalidArgument,
    NotBound,
    WrongThread,
)
from jobqueue_broadcast.events import Event, encode, stamped
from jobqueue_broadcast.expiries import Expiries
from jobqueue_broadcast.frames import Connection
from jobqueue_broadcast.full_state import FullState
from jobqueue_broadcast.handshake import Kind
from jobqueue_broadcast.history import History
from jobqueue_broadcast.intake import Intake
from jobqueue_broadcast.job_states import JobStates
from jobqueue_broadcast.monitors import Monitors
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.predicates import Filters, Subscription, is_job_event
from jobqueue_broadcast.revocations import Revocations
from jobqueue_broadcast.stats import BroadcasterStats
from jobqueue_broadcast.topics import event_topics
from jobqueue_broadcast.undelivered import OnUndelivered, UndeliveredOutcomes

__all__ = ["EventBroadcaster"]

logger = logging.getLogger("jobqueue_broadcast")


class EventBroadcaster:
    """Sends every event to the monitors and clients that are to have it.

    Not thread-safe, except `broadcast_threadsafe`: all else belongs to the thread that called
    `bind`, or, without an event loop, to one thread of the host's choice.

    Args:
        clock: The only clock read.
        backplane: What puts the events of all nodes in order; by default this process alone.
        history_limit: Events retained for peers that resume; past it, or past
            `history_byte_limit`, the oldest go, and who asks for them is told `resync_required`.
        history_byte_limit: Bytes of frames retained.
        job_retention: Seconds an ended job is kept for newcomers and `get_job_status`; then its
            subscriptions end and who asks for it is told `not_found`.
        ended_job_limit: How many ended jobs are kept; the one that ended first goes first.
        open_job_limit: How many jobs that have not ended are kept; the one seen first goes first.
        forgotten_job_limit: How many ids of jobs let go of are remembered.
        full_state_limit: How many workers, and how many machines, are kept for snapshots.
        client_retention: Seconds a client's subscriptions outlive its connection.
        outbox_limit: Bytes that may wait for a slow connection; past it, it is closed with 4408.
        stall_limit: Seconds after which a connection that takes nothing is aborted.
        heartbeat_interval: Seconds between `heartbeat_ack` frames sent unasked.
        on_undelivered: Called with each outcome that no client took within `undelivered_after`
            seconds; on one node of all, where there are others.
        undelivered_after: See there.
        undelivered_limit: How many outcomes may wait; past it the oldest is reported early.
        revocation_retention: Seconds a revoked principal is kept by name. Past it, or past
            `revocation_limit` of them, every credential issued up to that revocation is refused;
            one that does not say when it was issued is good again.
        revocation_limit: How many revoked principals are kept by name.

    Attributes:
        clock: What time is read from; with the other parts (`delivery`, `history`, `jobs`,
            `monitors`, `clients`, `intake`), for sessions and adapters.

    Raises:
        InvalidArgument: A limit is negative.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        backplane: Backplane | None = None,
        history_limit: int = 10_000,
        history_byte_limit: int = 32 * 1024 * 1024,
        job_retention: float = 600.0,
        ended_job_limit: int = 50_000,
        open_job_limit: int = 100_000,
        forgotten_job_limit: int = 100_000,
        full_state_limit: int = 10_000,
        client_retention: float = 120.0,
        outbox_limit: int = 1024 * 1024,
        stall_limit: float = 10.0,
        heartbeat_interval: float = 30.0,
        on_undelivered: OnUndelivered | None = None,
        undelivered_after: float = 30.0,
        undelivered_limit: int = 100_000,
        revocation_retention: float = 30 * 86_400.0,
        revocation_limit: int = 10_000,
    ) -> None:
        _check_limits(
            history_limit=history_limit,
            history_byte_limit=history_byte_limit,
            job_retention=job_retention,
            ended_job_limit=ended_job_limit,
            open_job_limit=open_job_limit,
            forgotten_job_limit=forgotten_job_limit,
            full_state_limit=full_state_limit,
            client_retention=client_retention,
            outbox_limit=outbox_limit,
            stall_limit=stall_limit,
            heartbeat_interval=heartbeat_interval,
            undelivered_after=undelivered_after,
            undelivered_limit=undelivered_limit,
            revocation_retention=revocation_retention,
            revocation_limit=revocation_limit,
        )
        self.clock: Clock = clock or SystemClock()
        self._thread: int | None = None
        self._call_threadsafe: Callable[..., Any] | None = None
        self._heartbeat_interval = heartbeat_interval
        self._next_heartbeat = self.clock.monotonic() + heartbeat_interval
        self._expiries = Expiries()
        self._revocations = Revocations(revocation_retention, revocation_limit)
        self.delivery = Delivery(
            self.clock, outbox_limit=outbox_limit, stall_limit=stall_limit, on_lost=self._lost
        )
        self.history = History("", history_limit, history_byte_limit)
        self.jobs = JobStates(
            self.clock,
            retention=job_retention,
            ended_limit=ended_job_limit,
            open_limit=open_job_limit,
            forgotten_limit=forgotten_job_limit,
        )
        self._full_state = FullState(full_state_limit)
        self._backplane: Backplane = backplane or InProcessBackplane()
        # Asked once: with a Protocol it takes 20 µs, and every command about a job wants to know.
        self.remote: RemoteBackplane | None = (
            self._backplane if isinstance(self._backplane, RemoteBackplane) else None
        )
        """The backplane, if it is one that an adapter has to run."""
        self._undelivered = UndeliveredOutcomes(
            on_undelivered, undelivered_after, undelivered_limit, self.remote
        )
        self.monitors = Monitors(self.delivery, self.history, self.clock, self.full_state)
        self.clients = Clients(
            self.delivery,
            self.history,
            self.jobs,
            self._undelivered,
            self.clock,
            client_retention,
        )
        self._claims: Claims | None = None
        if self.remote is not None:
            self._claims = Claims(self.remote, self._tell_nodes, client_retention)
            self.clients.share_with(self.remote.keep)
        self.intake = Intake(
            backplane=self._backplane,
            clock=self.clock,
            delivery=self.delivery,
            history=self.history,
            jobs=self.jobs,
            full_state=self._full_state,
            undelivered=self._undelivered,
            monitors=self.monitors,
            clients=self.clients,
            revocations=self._revocations,
            claims=self._claims,
        )
        self._backplane.attach(self.intake)

    # --- what a host does ------------------------------------------------------------------------

    def broadcast(self, event: Event) -> None:
        """Send an event to every monitor and client that is to have it.

        Returns at once, whatever the peers do, and never raises on their account. An event and
        what it holds must not be changed afterwards.

        Raises:
            InvalidArgument: Not an `Event`, not declared, or with values that JSON cannot hold; or
                its declared client format failed.
            WrongThread: Called beside the event loop's thread; use `broadcast_threadsafe`.
            BackplaneFull: The backplane is away and its queue is full.
        """
        if self._thread is not None and self._thread != threading.get_ident():
            raise WrongThread(
                "broadcast() was called from another thread: use broadcast_threadsafe"
            )
        self.intake.publish(*self._prepared(event))

    def broadcast_threadsafe(self, event: Event) -> None:
        """Send an event from any thread; events of one thread keep their order.

        Raises:
            InvalidArgument: As `broadcast`.
            NotBound: No adapter has bound an event loop yet.
        """
        if self._call_threadsafe is None:
            raise NotBound("broadcast_threadsafe needs an event loop: start an adapter, or `bind`")
        self._call_threadsafe(self.intake.publish, *self._prepared(event))

    def subscribe_client_to_job(self, client_id: str, job_id: str) -> None:
        """Subscribe a client to a job: it is sent the job's state, then its events.

        The client need not be connected yet, nor the job exist; but a client that is not
        connected has `client_retention` seconds to appear.

        Raises:
            InvalidArgument: An id is empty or no string.
        """
        _check_id("client_id", client_id)
        _check_id("job_id", job_id)
        self.clients.subscribe(client_id, job_id)
        self.delivery.settle()

    def unsubscribe_client_from_job(self, client_id: str, job_id: str) -> None:
        """End a client's subscription to a job; does nothing where there is none."""
        self.clients.unsubscribe(client_id, job_id)

    def update_subscription(
        self, monitor_id: str, topics: Iterable[str] | None, filters: Filters | None = None
    ) -> None:
        """Replace the topics (`None`: all) and filters of a connected monitor.

        Raises:
            UnknownTopic: A topic belongs to no event type.
            InvalidArgument: No monitor with this id is connected.
        """
        subscription = Subscription.of(topics, filters)
        monitor = self.monitors.get(monitor_id)
        if monitor is None:
            raise InvalidArgument(f"expected the id of a connected monitor, got {monitor_id!r}")
        self.monitors.update(monitor, subscription)

    def full_state(self) -> dict[str, Any]:
        """Return everything as it is now: workers, machines, jobs and system figures.

        The shape is `data` of `full_state_snapshot` (wire protocol, section 5).
        """
        return self._full_state.snapshot(self.jobs)

    def job(self, job_id: str) -> JobInfo | None:
        """Return what is known of a job; `None` for one never seen or let go of."""
        state = self.jobs.get(job_id)
        return state.info() if state else None

    def restore(self, events: Iterable[Event]) -> None:
        """Fold events of before into the states, without sending them as events.

        For a host that starts again with an empty broadcaster: newcomers are given these states,
        and whoever has connected already is told `resync_required` and given them too. Each event
        needs a timestamp.

        Raises:
            InvalidArgument: An event is not declared or has no timestamp.
        """
        for event in events:
            event_topics(type(event))
            if not event.timestamp:
                raise InvalidArgument(f"restore: expected events with timestamps, got {event!r}")
            self.intake.restore(stamped(event, event.timestamp))
        self.intake.resync("trimmed")

    def revoke(self, principal: Principal | str) -> None:
        """Close every connection of a principal with 4401, here and on every other node.

        Credentials issued up to now are refused from now on; one that does not say when it was
        issued (`Principal.issued_at`), until `unrevoke`. What a process knows of this ends with
        it: repeat at the start what must still hold then.
        """
        now = self.clock.now_ms()
        revoked = PrincipalRevoked(principal_id=_principal_id(principal), timestamp=now)
        self._backplane.publish(encode(revoked))

    def unrevoke(self, principal: Principal | str) -> None:
        """Let a principal's credentials be good again, on every node."""
        now = self.clock.now_ms()
        undone = PrincipalUnrevoked(principal_id=_principal_id(principal), timestamp=now)
        self._backplane.publish(encode(undone))

    def is_revoked(self, principal: Principal) -> bool:
        """Tell whether a principal's credential was revoked; an adapter refuses it then."""
        return self._revocations.is_revoked(principal)

    def stats(self) -> BroadcasterStats:
        """Return the figures of this broadcaster."""
        return BroadcasterStats(
            monitors=len(self.monitors),
            clients=len(self.clients),
            monitor_groups=self.monitors.group_count,
            clients_away=self.clients.away_count,
            subscriptions=self.clients.subscription_count,
            jobs_open=self.jobs.open_count,
            jobs_ended=self.jobs.ended_count,
            workers=self._full_state.worker_count,
            machines=self._full_state.machine_count,
            history_events=len(self.history),
            history_bytes=self.history.size,
            behind=self.delivery.behind_count,
            outbox_bytes=self.delivery.waiting,
            outcomes_waiting=len(self._undelivered),
            revoked=len(self._revocations),
            events_total=self.intake.events,
            encodings_total=self.intake.events + self.clients.encodings,
            frames_total=self.delivery.frames,
            writes_total=self.delivery.writes,
            write_errors_total=self.delivery.write_errors,
            conflated_total=self.delivery.conflated,
            too_slow_total=self.delivery.too_slow,
            stalled_total=self.delivery.stalled,
            late_events_total=self.jobs.late,
            jobs_expired_total=self.jobs.expired,
            jobs_evicted_total=self.jobs.evicted,
            history_trimmed_total=self.history.trimmed,
            resync_required_total=self.monitors.resyncs + self.clients.resyncs,
            undelivered_total=self._undelivered.reported,
            poisoned_total=self.intake.poisoned,
        )

    # --- what an adapter does --------------------------------------------------------------------

    def bind(
        self,
        call_soon: Callable[[Callable[[], None]], Any],
        call_threadsafe: Callable[..., Any],
    ) -> None:
        """Join an event loop: events of one turn are written together at its end.

        Args:
            call_soon: Calls a function in the same turn of the loop, or the next.
            call_threadsafe: Calls a function with arguments in the loop, from any thread.
        """
        self._thread = threading.get_ident()
        self._call_threadsafe = call_threadsafe
        self.delivery.schedule_with(call_soon)

    def unbind(self) -> None:
        """Leave the event loop: what is pending is written now, and later events at once."""
        self.delivery.schedule_with(None)
        self.delivery.flush()
        self._thread = None
        self._call_threadsafe = None

    def tick(self) -> None:
        """Do what is due: stalls, heartbeats, expiries. Call it about twice a second."""
        now = self.clock.monotonic()
        self.delivery.check_stalls()
        self._close_expired_credentials()
        self._revocations.expire(self.clock.now_ms())
        self.intake.let_go_of_jobs()
        self.clients.expire(now)
        if self._claims is not None:
            self._claims.tick(now)
        self._undelivered.expire(now, self.clients.keep_up_with)
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + self._heartbeat_interval
            self.monitors.heartbeat()
        self.delivery.settle()

    def check_id(
        self, kind: Literal["monitor", "client"], peer_id: str, principal: Principal
    ) -> None:
        """Raise `IdTaken` when an id belongs to another principal; for use before an upgrade."""
        (self.monitors if kind == "monitor" else self.clients).check_id(peer_id, principal)

    def add_monitor(
        self,
        monitor_id: str,
        connection: Connection,
        topics: Iterable[str] | None = None,
        filters: Filters | None = None,
        *,
        principal: Principal = ANONYMOUS,
        resume: Position | Literal["new"] | None = None,
        grant: Grant | None = None,
    ) -> Subscriber:
        """Register a monitor's connection and greet it.

        Args:
            monitor_id: Its id. A connection of the same principal with this id is replaced (4409).
            connection: What frames are written to.
            topics: The topics it holds; `None`: all.
            filters: What narrows them.
            principal: Who it acts for.
            resume: `"new"` to be given positions, or the position to continue after.
            grant: What `prepare` returned for this very connection.

        Raises:
            IdTaken: The id belongs to another principal.
            Replaced: A connection that was granted the id later has it already.
            InvalidArgument: The id is empty; UnknownTopic: a topic belongs to no event type.
        """
        _check_id("monitor_id", monitor_id)
        _check_grant(grant, "monitor", monitor_id, principal)
        subscription = Subscription.of(topics, filters)
        added = self.monitors.add(monitor_id, connection, subscription, principal, resume)
        self._note_added(added, grant)
        return added

    def add_client(
        self,
        client_id: str,
        connection: Connection,
        *,
        principal: Principal = ANONYMOUS,
        resume: Position | Literal["new"] | None = None,
        grant: Grant | None = None,
    ) -> Subscriber:
        """Register a client's connection, greet it, and send it the states of its jobs.

        Args and errors are those of `add_monitor`.
        """
        _check_id("client_id", client_id)
        _check_grant(grant, "client", client_id, principal)
        self.clients.check_id(client_id, principal)
        if grant is not None and (jobs := grant.jobs()) is not None:
            self.clients.adopt(client_id, principal, jobs, resume)
        added = self.clients.add(client_id, connection, principal, resume)
        self._note_added(added, grant)
        return added

    def remove_monitor(self, monitor_id: str, connection: Connection) -> None:
        """Unregister a monitor's connection; one that replaced it is left alone."""
        monitor = self.monitors.get(monitor_id)
        if monitor is not None and monitor.connection is connection:
            self._lost(monitor)

    def remove_client(self, client_id: str, connection: Connection) -> None:
        """Unregister a client's connection; its subscriptions wait for it to come back."""
        client = self.clients.get(client_id)
        if client is not None and client.connection is connection:
            self._lost(client)

    def subscribers(self) -> list[Subscriber]:
        """Return everyone who is connected."""
        return [*self.monitors, *self.clients]

    def flush(self) -> None:
        """Write everything that is pending now, without waiting for the end of the turn."""
        self.delivery.flush()

    # --- what concerns every node ----------------------------------------------------------------

    async def prepare(
        self,
        kind: Kind,
        peer_id: str,
        principal: Principal,
        resume: Position | Literal["new"] | None = None,
    ) -> Grant | None:
        """Agree with the other nodes on a peer that connects: awaited before `add_…`.

        Whose the id is, what the client followed elsewhere, and, where another node gave out the
        position it resumes at, that this one has read so far. Does nothing without other nodes.

        Returns:
            What to give to `add_…` for this connection.

        Raises:
            IdTaken: The id belongs to another principal.
        """
        grant = None if self._claims is None else await self._claims.claim(kind, peer_id, principal)
        if (reached := self.reach(resume)) is not None:
            await reached
        return grant

    def reach(self, resume: Position | Literal["new"] | None) -> Awaitable[bool] | None:
        """Return what to await before a peer resumes; `None`: nothing.

        Another node may have given out a position that this one has yet to read up to.
        """
        if self.remote is None or not isinstance(resume, Position):
            return None
        if resume.epoch != self.history.epoch or resume.sequence <= self.history.head:
            return None
        return self.remote.reach(resume.sequence)

    def look_up(self, job_id: str) -> Callable[[], Awaitable[list[bytes]]] | None:
        """Return what to call and await to learn of a job unknown here, for `intake.recall`."""
        if self.remote is None or self.jobs.get(job_id) or self.jobs.was_forgotten(job_id):
            return None
        return partial(self.remote.look_up, job_id)

    def accept_job(self, job_id: str, owner: Principal, client_id: str | None = None) -> None:
        """Note, on every node, that a submit hook took a job for a principal.

        Its clients are told `job_accepted`, unless the job's `JobSubmitted` came first. The client
        that submitted it is subscribed only then: a job that ends first is accepted first.

        Raises:
            InvalidArgument: The id cannot be written as JSON.
        """
        accepted = JobAccepted(
            job_id=job_id, owner=owner.id, timestamp=self.clock.now_ms(), client_id=client_id
        )
        payload = encode(accepted)
        if client_id is not None:
            self.clients.expect(client_id, owner)
        try:
            self._backplane.publish(payload)
        except BackplaneFull:
            logger.warning("job %s is accepted on this node only: the backplane is full", job_id)
            self.intake.agree(accepted)
            self.delivery.settle()

    # --- inside ----------------------------------------------------------------------------------

    def _prepared(self, event: Event) -> tuple[bytes, Event]:
        event_topics(type(event))  # raises for what is no event, or was not declared
        if not event.timestamp or event.also_stamped:
            event = stamped(event, self.clock.now_ms())
        if is_declared_format(event) and is_job_event(event):
            encode(client_frame(event))  # raises here what would else be found at delivery
        return encode(event), event

    def _close_expired_credentials(self) -> None:
        for subscriber in self._expiries.due(self.clock.now_ms() / 1000):
            self.delivery.close(subscriber, CloseCode.UNAUTHENTICATED, "credential expired")

    def _note_added(self, subscriber: Subscriber, grant: Grant | None) -> None:
        self._expiries.add(subscriber)
        if self._claims is not None and grant is not None:
            self._claims.connected(subscriber, grant, self.clock.monotonic())
        self.delivery.settle()

    def _tell_nodes(self, message: Control) -> None:
        try:
            self._backplane.publish(encode(message))
        except BackplaneFull:
            logger.warning("the other nodes are not told: the backplane is full")

    def _lost(self, subscriber: Subscriber) -> None:
        """Unregister a connection that is gone or about to be."""
        if self._claims is not None:
            self._claims.lost(subscriber)
        self.delivery.forget(subscriber)
        if subscriber.kind == "monitor":
            self.monitors.remove(subscriber)
        else:
            self.clients.remove(subscriber)


def _principal_id(principal: Principal | str) -> str:
    principal_id = principal.id if isinstance(principal, Principal) else principal
    _check_id("principal", principal_id)
    return principal_id


def _check_id(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidArgument(f"{name}: expected a non-empty string, got {value!r}")


def _check_grant(grant: Grant | None, kind: Kind, peer_id: str, principal: Principal) -> None:
    if grant is None:
        return
    if (grant.kind, grant.id, grant.principal_id) != (kind, peer_id, principal.id):
        raise InvalidArgument(f"grant: expected the one of {kind} {peer_id!r}")
    grant.check()


def _check_limits(**limits: object) -> None:
    for name, value in limits.items():
        if not isinstance(value, int | float) or value < 0:
            raise InvalidArgument(f"{name}: expected a number, 0 or more, got {value!r}")
