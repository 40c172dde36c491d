"""What becomes of a payload that the backplane gives back: who takes it, and in which order.

`Intake` is the broadcaster's side of a backplane. An event goes to the job states, the history, the
monitors and the clients of its job, in that order; a decision of another node is agreed to. What
is learned late, of before or of elsewhere, goes to the states alone and is sent to nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import chain
from typing import assert_never

import msgspec

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.backplane import Backplane
from jobqueue_broadcast.catch_up import Reason
from jobqueue_broadcast.claims import Claims
from jobqueue_broadcast.client_format import ClientJobAccepted, has_client_format
from jobqueue_broadcast.clients import Clients
from jobqueue_broadcast.clock import Clock
from jobqueue_broadcast.control import (
    Control,
    JobAccepted,
    PeerReplaced,
    PrincipalRevoked,
    PrincipalUnrevoked,
    decode_control,
    is_control,
)
from jobqueue_broadcast.delivery import Delivery
from jobqueue_broadcast.errors import CloseCode, InvalidArgument
from jobqueue_broadcast.event_types import decode_event
from jobqueue_broadcast.events import Event, encode
from jobqueue_broadcast.full_state import FullState
from jobqueue_broadcast.history import History, Record
from jobqueue_broadcast.job_states import JobState, JobStates
from jobqueue_broadcast.monitors import Monitors
from jobqueue_broadcast.predicates import is_job_event
from jobqueue_broadcast.revocations import Revocations
from jobqueue_broadcast.undelivered import UndeliveredOutcomes

__all__ = ["Intake"]

logger = logging.getLogger("jobqueue_broadcast")


class Intake:
    """The broadcaster's side of a backplane: a `Receiver` that hands what it is given to the parts.

    Args:
        backplane: Where events are published; it is to be attached to this intake.
        clock: For the time an outcome began to wait.
        delivery: Writes what the parts have to say.
        history: Takes the events.
        jobs: Take the events of jobs, and who owns them.
        full_state: Takes the other events.
        undelivered: Takes the outcomes that no client took.
        monitors: Are sent every event they hold.
        clients: Are sent the events of their jobs.
        revocations: Take whose credentials are no longer good.
        claims: Whose an id is over all nodes; `None`: there are no others.

    Attributes:
        events: How many events were delivered.
        poisoned: How many payloads were dropped because they say nothing that is understood.
    """

    def __init__(
        self,
        *,
        backplane: Backplane,
        clock: Clock,
        delivery: Delivery,
        history: History,
        jobs: JobStates,
        full_state: FullState,
        undelivered: UndeliveredOutcomes,
        monitors: Monitors,
        clients: Clients,
        revocations: Revocations,
        claims: Claims | None,
    ) -> None:
        self._backplane = backplane
        self._clock = clock
        self._delivery = delivery
        self._history = history
        self._jobs = jobs
        self._full_state = full_state
        self._undelivered = undelivered
        self._monitors = monitors
        self._clients = clients
        self._revocations = revocations
        self._claims = claims
        self._in_flight: tuple[bytes, Event] | None = None
        self._learned: set[str] = set()
        self.events = 0
        self.poisoned = 0

    # --- what the broadcaster does ---------------------------------------------------------------

    def publish(self, payload: bytes, event: Event) -> None:
        """Publish an event; if the backplane gives it back at once, it need not be decoded.

        Raises:
            BackplaneFull: The backplane is away and its queue is full.
        """
        outer, self._in_flight = self._in_flight, (payload, event)
        try:
            self._backplane.publish(payload)
        finally:
            self._in_flight = outer
        self._delivery.settle()

    def restore(self, event: Event) -> None:
        """Take an event of before into the states alone; `resync` tells who is here already."""
        self._learn(event)
        self._keep_bounds()

    def agree(self, message: Control) -> None:
        """Do what the nodes, or this one alone, decided."""
        match message:
            case JobAccepted(job_id=job_id, owner=owner, timestamp=timestamp, client_id=client_id):
                if self._jobs.accept(job_id, owner, timestamp):
                    self._clients.tell_accepted(
                        ClientJobAccepted(timestamp=timestamp, job_id=job_id)
                    )
                if client_id is not None:
                    self._clients.subscribe_submitter(client_id, owner, job_id)
                self._keep_bounds()
            case PeerReplaced():
                self._replace(message)
            case PrincipalRevoked(principal_id=principal_id, timestamp=timestamp):
                self._revocations.revoke(principal_id, timestamp)
                self._close_revoked(principal_id, lambda _: True)
            case PrincipalUnrevoked(principal_id=principal_id):
                self._revocations.unrevoke(principal_id)
            case _:
                assert_never(message)

    def let_go_of_jobs(self) -> None:
        """Forget the jobs that are too old or too many, and end the subscriptions to them."""
        for state in self._jobs.expire():
            self._clients.end_job(state.id)

    # --- what a backplane does -------------------------------------------------------------------

    def restart(self, epoch: str, head: int) -> None:
        """Begin another sequence of events; peers of the old one are told when they resume."""
        self._history.begin(epoch, head)

    def receive(self, sequence: int, payload: bytes) -> None:
        """Take the next payload of the backplane: deliver an event, or agree to a decision."""
        published = self._in_flight
        if published is not None and published[0] is payload:
            # Our own, back within `publish`: it need not be decoded.
            self._deliver(sequence, payload, published[1])
            return
        decoded = self._decoded(payload)
        if decoded is None:
            return
        payload, taken = decoded
        if isinstance(taken, Event):
            self._deliver(sequence, payload, taken)
        else:
            self.agree(taken)
        self._delivery.settle()

    def replay(self, sequence: int, payload: bytes) -> None:
        """Take the next payload into the history and the states, and send it to nobody."""
        decoded = self._decoded(payload)
        if decoded is None:
            return
        payload, taken = decoded
        if isinstance(taken, Event):
            state, told = self._learn(taken)
            facts = state.facts if state else None
            self._history.append(Record(sequence, taken, payload, facts, told))
            if told and taken.is_outcome and is_job_event(taken):
                age = (self._clock.now_ms() - taken.timestamp) / 1000
                self._undelivered.add(taken, sequence, self._clock.monotonic(), age)
        else:
            self._agree_silently(taken)

    def recall(self, payload: bytes) -> None:
        """Take a payload that is kept for its job into the states alone."""
        decoded = self._decoded(payload)
        if decoded is None:
            return
        taken = decoded[1]
        if isinstance(taken, Event):
            self._learn(taken)
        else:
            self._agree_silently(taken)

    def unfinished(self) -> list[str]:
        """Return the jobs that have not ended, as far as is known here."""
        return [state.id for state in self._jobs if state.ended_by is None]

    def resync(self, reason: Reason) -> None:
        """Tell everyone connected that events were missed, and send the state as it is now."""
        learned, self._learned = self._learned, set()
        self._keep_bounds()
        self._monitors.resync(reason)
        self._clients.resync(reason, learned)
        self._delivery.settle()

    # --- inside ----------------------------------------------------------------------------------

    def _deliver(self, sequence: int, payload: bytes, event: Event) -> None:
        self.events += 1
        state, told = self._fold(event)
        record = Record(sequence, event, payload, state.facts if state else None, told)
        self._history.append(record)
        self._monitors.deliver(record)
        if told and has_client_format(event):
            taken = self._clients.deliver(record)
            # Only a job's event is told; that it is one is said for the type checkers.
            if event.is_outcome and is_job_event(event):
                if taken:
                    self._undelivered.took(sequence)
                else:
                    self._undelivered.add(event, sequence, self._clock.monotonic())
        if state is not None:
            self._keep_bounds()

    def _fold(self, event: Event) -> tuple[JobState | None, bool]:
        """Take an event into the states; say whether clients are to be told."""
        if not is_job_event(event):
            self._full_state.take(event)
            return None, False
        state, told = self._jobs.take(event)
        if state.ended_by is None:
            self._undelivered.forget(event.job_id)
        return state, told

    def _learn(self, event: Event) -> tuple[JobState | None, bool]:
        """Take an event into the states, and remember an outcome that nobody was sent."""
        state, told = self._fold(event)
        if state is not None and state.ended_by is event:
            self._learned.add(state.id)
        return state, told

    def _decoded(self, payload: bytes) -> tuple[bytes, Event | Control] | None:
        """Return the payload as it would have been encoded here, and what it says.

        Peers are sent those very bytes, and anybody may have written to the backplane: white
        space or a field of their own must not get into a frame.
        """
        try:
            taken = decode_control(payload) if is_control(payload) else decode_event(payload)
            return encode(taken), taken
        except (msgspec.MsgspecError, InvalidArgument, RecursionError):
            self.poisoned += 1
            logger.warning("dropped a payload of the backplane that is not an event")
            return None

    def _agree_silently(self, message: Control) -> None:
        match message:
            case JobAccepted():
                self._jobs.accept(message.job_id, message.owner, message.timestamp)
            case PrincipalRevoked():
                # Perhaps long done: spare who is here for a credential of later.
                self._revocations.revoke(message.principal_id, message.timestamp)
                self._close_revoked(message.principal_id, self._revocations.is_revoked)
            case _:
                self.agree(message)

    def _replace(self, message: PeerReplaced) -> None:
        if self._claims is None:
            return
        peers = self._monitors if message.kind == "monitor" else self._clients
        peer = peers.get(message.id)
        if self._claims.is_replaced(message, peer) and peer is not None:
            self._delivery.close_replaced(peer)
        if self._claims.has_moved(message):
            self._clients.let_go(message.id)

    def _close_revoked(self, principal_id: str, which: Callable[[Principal], bool]) -> None:
        for subscriber in chain(self._monitors, self._clients):
            principal = subscriber.principal
            if principal.id == principal_id and which(principal):
                self._delivery.close(subscriber, CloseCode.UNAUTHENTICATED, "credential revoked")

    def _keep_bounds(self) -> None:
        # Only after delivery: the job that is one too many may be the one that ended just now.
        if self._jobs.over:
            self.let_go_of_jobs()
