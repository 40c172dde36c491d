"""The monitor: typed events in order, without duplicates, and a `Gap` where some were missed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Literal, Self, TypeAlias, Unpack

from msgspec import UNSET

from jobqueue_broadcast.client._buffer import Buffer
from jobqueue_broadcast.client._endpoint import Endpoint, Token
from jobqueue_broadcast.client._frames import (
    Envelope,
    ErrorFrame,
    decode_error,
    decode_monitor_event,
    decode_page,
    decode_resync_required,
    decode_snapshot,
)
from jobqueue_broadcast.client._items import Gap, ResyncPage, UnknownEvent
from jobqueue_broadcast.client._lane import Lane
from jobqueue_broadcast.client._peer import ConnectionOptions, Peer, new_message_id
from jobqueue_broadcast.client._signal import Signal
from jobqueue_broadcast.commands import (
    MonitorFilters,
    RequestFullState,
    ResyncRequest,
    ResyncRequired,
    Subscribe,
)
from jobqueue_broadcast.errors import CommandFailed, InvalidArgument
from jobqueue_broadcast.events import Event, JobEvent, JobSubmitted, encode
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.predicates import (
    Filters,
    JobFacts,
    Subscription,
    should_monitor_receive_event,
)
from jobqueue_broadcast.topics import known_topics

__all__ = ["MonitorItem", "MonitorPeer", "connect_monitor"]

MonitorItem: TypeAlias = Event | UnknownEvent | Gap
"""What iterating over a monitor yields."""


@asynccontextmanager
async def connect_monitor(
    url: str,
    *,
    monitor_id: str,
    topics: Iterable[str] | None = None,
    filters: Filters | None = None,
    token: Token = None,
    resume: str | None = None,
    buffer_limit: int = 10_000,
    **options: Unpack[ConnectionOptions],
) -> AsyncGenerator[MonitorPeer]:
    """Watch what happens: `async with connect_monitor(...) as monitor: async for item in monitor`.

    Entering the block waits for the first connection, for as long as the server cannot be reached;
    `anyio.fail_after` sets an end to that. From then on the monitor reconnects by itself and
    continues where it broke off. Works on asyncio and trio.

    Args:
        url: `ws://host:port` or `wss://…`.
        monitor_id: 1 to 128 characters of `A-Z a-z 0-9 . _ ~ : -`. Another connection with the
            same id and principal ends this one (`ConnectionEnded`, code 4409).
        topics: What to hold; `None`: all.
        filters: What narrows them.
        token: A bearer token, or a function, async or not, called for one at every connect. What
            the function raises ends the monitor and reaches the caller.
        resume: A `MonitorPeer.position` of before, to continue right after it.
        buffer_limit: How many events may wait for the caller. At the limit nothing more is read
            from the socket; a server that is kept waiting closes the connection after a while, and
            the monitor comes back and resumes. Nothing is dropped. The limit is suspended while a
            method of the monitor waits for an answer.
        **options: See `ConnectionOptions`.

    Raises:
        ConnectRefused: The server answered with an HTTP status that retrying will not change.
        ConnectionEnded: It closed the connection with a code that says "do not reconnect".
        CommandFailed: It refused the filters.
        InvalidArgument: An argument cannot be right.
    """
    endpoint = Endpoint(url, "monitor", monitor_id)
    position = None if resume is None else Position.parse(resume)
    if isinstance(topics, str) or buffer_limit < 1:
        raise InvalidArgument("expected a collection of topics, and a buffer_limit of 1 or more")
    held = None if topics is None else frozenset(map(str, topics))
    peer = MonitorPeer(endpoint, token, position, options, held, filters, buffer_limit)
    async with peer.running():
        yield peer


class MonitorPeer(Peer):
    """A monitor, as `connect_monitor` yields it: an asynchronous iterator of events.

    Yields the classes of `jobqueue_broadcast.events` (and those declared with `declare_event`),
    an `UnknownEvent` for anything else, and a `Gap` with the full state where events were missed.
    Iterate in one task at a time. When the peer comes to its end, the iterator raises
    `ConnectionEnded` or `ConnectRefused` after the last event, and so does everything that waits.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        token: Token,
        position: Position | None,
        options: ConnectionOptions,
        topics: frozenset[str] | None,
        filters: Filters | None,
        buffer_limit: int,
    ) -> None:
        super().__init__(endpoint, token, position, options)
        self._topics = topics
        self._filters = filters or Filters()
        # Replies carry no message_id here: one command at a time keeps them apart.
        self._lane = Lane(1)
        self._lanes = (self._lane,)
        self._buffer: Buffer[tuple[MonitorItem, Position | None]] = Buffer(buffer_limit)
        self._given = position
        self._gap: ResyncRequired | None = None
        self._narrowing: dict[str, JobFacts] | None = None
        self._narrowed = Signal()
        self._filtering: str | None = None
        self.duplicates = 0
        """How many events came a second time and were left out."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MonitorItem:
        item, position = await self._buffer.get()
        self._given = position or self._given
        return item

    @property
    def position(self) -> str | None:
        """The position of the last item that was yielded, for `connect_monitor(resume=…)`."""
        return None if self._given is None else str(self._given)

    async def full_state(self) -> dict[str, Any]:
        """Return everything as it is now: workers, machines, jobs and system figures.

        The shape is `data` of `full_state_snapshot` (wire protocol, section 5).

        Raises:
            ConnectionEnded, ConnectRefused: The peer came to its end.
        """
        message_id = new_message_id()
        command = RequestFullState(message_id=message_id)
        with self._buffer.waived():
            return decode_snapshot(await self._ask(self._lane, message_id, command))

    async def subscribe(
        self, topics: Iterable[str] | None = None, filters: Filters | None = None
    ) -> None:
        """Replace topics (`None`: all this side knows) and filters, from the next event on.

        Raises:
            CommandFailed: The server does not know a topic.
            ConnectionEnded, ConnectRefused: The peer came to its end.
        """
        held = None if topics is None else frozenset(map(str, topics))
        wanted = filters or Filters()

        def replaced() -> None:
            self._topics, self._filters = held, wanted

        message_id = new_message_id()
        with self._buffer.waived():
            command = _subscribe(message_id, held, wanted)
            await self._ask(self._lane, message_id, command, replaced)

    async def resync(self, since: int, max_events: int | None = None) -> ResyncPage:
        """Return retained events of a time and later; they are not yielded by the iterator.

        Args:
            since: Unix time in milliseconds.
            max_events: How many at most, beyond those of one millisecond; the server has a limit
                of its own.

        Raises:
            ConnectionEnded, ConnectRefused: The peer came to its end.
        """
        message_id = new_message_id()
        most = UNSET if max_events is None else max_events
        command = ResyncRequest(since_timestamp=since, max_events=most, message_id=message_id)
        with self._buffer.waived():
            page = decode_page(await self._ask(self._lane, message_id, command))
        return ResyncPage(
            events=[decode_monitor_event(bytes(raw)) for raw in page.events],
            has_more=page.has_more,
            oldest_available_timestamp=page.oldest_available_timestamp,
        )

    async def _until_ready(self) -> None:
        await super()._until_ready()
        while self._narrowing is not None and self._failure is None:
            await self._narrowed.wait()
        await super()._until_ready()

    # --- one connection --------------------------------------------------------------------------

    def _parameters(self) -> Iterable[tuple[str, str]]:
        return [] if self._topics is None else [("topics", ",".join(sorted(self._topics)))]

    def _opened(self, send: Callable[[bytes], None]) -> None:
        self._gap = None
        self._given = self._given or self._position
        if self._filters:
            # A handshake cannot carry filters. Until the server has them they are applied here.
            self._narrowing = {}
            self._lane.withdraw(self._filtering)
            self._filtering = new_message_id()
            command = encode(_subscribe(self._filtering, self._topics, self._filters))
            self._lane.post(self._filtering, command, _raise_refusal, first=True)
        self._lane.connect(send)

    def _ended(self, error: Exception) -> None:
        self._buffer.fail(error)
        self._narrowed.notify()

    async def _received(self, frame: bytes, envelope: Envelope) -> None:
        match envelope.type:
            case "resync_required":
                self._gap = decode_resync_required(frame)
            case "full_state_snapshot" if self._gap is not None:
                await self._tell_gap(self._gap, frame)
            case "full_state_snapshot" | "resync_response":
                self._lane.answer_oldest(frame)
            case "subscribed":
                self._narrowing = None
                self._narrowed.notify()
                self._lane.answer_oldest(frame)
            case "error":
                self._refused(decode_error(frame))
            case "heartbeat_ack":
                pass
            case _:
                await self._take_event(frame, envelope)

    def _refused(self, error: ErrorFrame) -> None:
        if error.code == "rate_limited":
            self._slow_down()
        else:
            self._lane.answer_oldest(CommandFailed(error.code, error.error))

    async def _tell_gap(self, required: ResyncRequired, frame: bytes) -> None:
        position = Position.parse(required.position)
        state = decode_snapshot(frame)
        gap = Gap(reason=required.reason, position=required.position, state=state)
        # Not before the state is here: a connection lost in between must not hide the gap.
        self._gap, self._position = None, position
        await self._buffer.put((gap, position))

    async def _take_event(self, frame: bytes, envelope: Envelope) -> None:
        position = None
        if isinstance(envelope.position, str):
            position = self._follow_position(envelope.position)
            if self._position is not None and position <= self._position:
                self.duplicates += 1
                return
            self._position = position
        item = decode_monitor_event(frame)
        if self._narrowing is None or self._passes(item, self._narrowing):
            await self._buffer.put((item, position))

    def _passes(self, item: Event | UnknownEvent, facts: dict[str, JobFacts]) -> bool:
        """Apply the filters to an event the server sent before it had them.

        Of jobs submitted before this connection nothing is known here, so that some of their
        events may pass that the server would have kept away.
        """
        if isinstance(item, JobSubmitted):
            facts[item.job_id] = JobFacts.of(item.job_data)
        if not isinstance(item, Event):
            return True
        job = facts.get(item.job_id) if isinstance(item, JobEvent) else None
        return should_monitor_receive_event(Subscription(known_topics(), self._filters), item, job)


def _subscribe(message_id: str, topics: frozenset[str] | None, filters: Filters) -> Subscribe:
    ids: dict[Literal["job_types", "worker_ids"], Any] = {}
    if filters.job_types:
        ids["job_types"] = sorted(filters.job_types)
    if filters.worker_ids:
        ids["worker_ids"] = sorted(filters.worker_ids)
    return Subscribe(
        topics=sorted(known_topics() if topics is None else topics),
        filters=MonitorFilters(**ids, priority_range=filters.priority_range) if filters else UNSET,
        message_id=message_id,
    )


def _raise_refusal(answer: bytes | Exception) -> None:
    """End the monitor whose filters the server refused: it would show what was not asked for."""
    if isinstance(answer, CommandFailed):
        raise answer
