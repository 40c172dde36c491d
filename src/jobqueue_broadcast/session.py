"""One connection's conversation, sans-I/O: frames in, replies and questions to the host out.

Replies go to the connection through the broadcaster, in order with its events. What only the host
can decide (its `submit`, `cancel` and `authorize` hooks, async or not) comes back to the adapter
as an `Ask`: the adapter makes the call, awaits it where needed, and hands in the answer. The
commands are the wire protocol's section 5.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias, assert_never

from msgspec import UNSET, Struct, UnsetType

from jobqueue_broadcast.auth import ANONYMOUS, Action, Authorize, Principal
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.commands import (
    AnyMonitorCommand,
    BadFrame,
    CancelJob,
    ErrorCode,
    ErrorReply,
    GetJobStatus,
    Heartbeat,
    JobCancelled,
    JobStatusReply,
    JobSubscribed,
    JobUnsubscribed,
    MonitorSubscribed,
    RequestFullState,
    ResyncRequest,
    SubmitJob,
    Subscribe,
    SubscribeProgress,
    UnsubscribeProgress,
    decode_client_command,
    decode_monitor_command,
)
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.errors import CloseCode, HookRefusal, InvalidArgument, UnknownTopic
from jobqueue_broadcast.events import encode
from jobqueue_broadcast.frames import reply_frame
from jobqueue_broadcast.predicates import Filters, Subscription
from jobqueue_broadcast.rate_limit import TokenBucket

__all__ = ["Ask", "Cancel", "Hooks", "Session", "SessionLimits", "Submit"]

logger = logging.getLogger("jobqueue_broadcast")

Submit: TypeAlias = Callable[[SubmitJob, Principal], str | Awaitable[str]]
"""Create the job a client submitted; return its id. May raise `HookRefusal`."""

Cancel: TypeAlias = Callable[[str, Principal], object]
"""Cancel a job. May be async, and may raise `HookRefusal`."""

_NOT_FOUND = "no such job, or it is not yours"
_MOST_EVENTS = 1000
_MOST_BYTES = 1024


class Hooks(Struct, frozen=True, kw_only=True):
    """What a host decides; a command whose hook is missing is answered `unsupported`."""

    authorize: Authorize | None = None
    submit: Submit | None = None
    cancel: Cancel | None = None


class SessionLimits(Struct, frozen=True, kw_only=True):
    """What one connection may ask for.

    Args:
        command_rate: Commands per second in the long run; past it they are answered
            `rate_limited`.
        command_burst: Commands at once. After as many refusals in a row the connection is closed
            with 4429.
        subscriptions_per_client: Jobs a client may be subscribed to; past it `subscribe_progress`
            and `submit_job` are answered `forbidden`.
    """

    command_rate: float = 50.0
    command_burst: int = 100
    subscriptions_per_client: int = 10_000


class Ask:
    """A question only the host can answer.

    The adapter calls `call`, awaits what it returns if that is awaitable, and then calls
    `answered` with the result or `failed` with the exception; each may return another `Ask`.
    """

    __slots__ = ("_answered", "_failed", "call")

    def __init__(
        self,
        call: Callable[[], Any],
        answered: Callable[[Any], Ask | None],
        failed: Callable[[Exception], Ask | None],
    ) -> None:
        self.call = call
        self._answered = answered
        self._failed = failed

    def answered(self, result: Any) -> Ask | None:
        """Go on with the host's answer."""
        return self._answered(result)

    def failed(self, error: Exception) -> Ask | None:
        """Go on after the host's hook raised."""
        return self._failed(error)


class Session:
    """One connection's conversation.

    Args:
        broadcaster: What the commands act on.
        subscriber: The connection, as registered.
        hooks: What the host decides.
        limits: What the connection may ask for.
        errors: Counts the errors that were answered, by code; for several sessions together.
    """

    __slots__ = ("_bucket", "_errors", "_hooks", "_limits", "broadcaster", "subscriber")

    def __init__(
        self,
        broadcaster: EventBroadcaster,
        subscriber: Subscriber,
        hooks: Hooks,
        limits: SessionLimits,
        errors: Counter[str] | None = None,
    ) -> None:
        self.broadcaster = broadcaster
        self.subscriber = subscriber
        self._hooks = hooks
        self._limits = limits
        self._errors: Counter[str] = Counter() if errors is None else errors
        self._bucket: TokenBucket | None = None

    def open(self, jobs: Iterable[str]) -> Ask | None:
        """Subscribe to the jobs named in the handshake, each as `subscribe_progress` would."""
        waiting = list(jobs)

        def next_job(_: Any = None) -> Ask | None:
            while waiting:
                ask = self._subscribe(SubscribeProgress(job_id=waiting.pop(0)))
                if ask is not None:
                    return _chain(ask, next_job)
            return None

        return next_job()

    def receive(self, message: str | bytes) -> Ask | None:
        """Take a frame from the peer: text as `str`, binary as `bytes`."""
        if not self.subscriber.connected:
            return None
        if isinstance(message, bytes):
            self._close(CloseCode.UNSUPPORTED_DATA, "expected text frames")
            return None
        if not self._within_rate():
            return None
        try:
            if self.subscriber.kind == "client":
                return self._client_command(message)
            self._monitor_command(message)
        except BadFrame as bad:
            self._reply(bad.reply(self.broadcaster.clock.now_ms()))
        return None

    def _within_rate(self) -> bool:
        # Most connections never send anything; the bucket is made for those that do.
        if self._bucket is None:
            limits = self._limits
            self._bucket = TokenBucket(
                self.broadcaster.clock, limits.command_rate, limits.command_burst
            )
        if self._bucket.take():
            return True
        if self._bucket.refused > self._bucket.burst:
            self._close(CloseCode.TOO_MANY_COMMANDS, "too many commands")
        else:
            self._error("rate_limited", "too many commands: wait before the next")
        return False

    # --- monitors --------------------------------------------------------------------------------

    def _monitor_command(self, text: str) -> None:
        command = decode_monitor_command(text)
        # What is answered is as of now, and comes after all that was before.
        self.subscriber.when_caught_up(lambda: self._answer_monitor(command))

    def _answer_monitor(self, command: AnyMonitorCommand) -> None:
        monitors = self.broadcaster.monitors
        match command:
            case Subscribe():
                self._subscribe_monitor(command)
            case RequestFullState():
                self._reply(monitors.snapshot_reply())
            case ResyncRequest():
                most = _MOST_EVENTS if command.max_events is UNSET else command.max_events
                since = command.since_timestamp
                self._reply(monitors.page(self.subscriber, since, min(most, _MOST_EVENTS)))
            case Heartbeat():
                self._reply(monitors.heartbeat_reply(self.subscriber))
            case _:
                assert_never(command)

    def _subscribe_monitor(self, command: Subscribe) -> None:
        filters = command.filters
        try:
            subscription = Subscription.of(
                command.topics,
                None
                if filters is UNSET
                else Filters.of(
                    job_types=filters.job_types or None,
                    worker_ids=filters.worker_ids or None,
                    priority_range=filters.priority_range or None,
                ),
            )
        except UnknownTopic:
            self._error("invalid_field", "topics: expected known topics", command.message_id)
            return
        except ValueError:
            self._error(
                "invalid_field",
                "priority_range: expected [min, max] with min <= max",
                command.message_id,
            )
            return
        self.broadcaster.monitors.update(self.subscriber, subscription)
        self._reply(
            MonitorSubscribed(
                timestamp=self.broadcaster.clock.now_ms(),
                monitor_id=self.subscriber.id,
                topics=sorted(subscription.topics),
            )
        )

    # --- clients ---------------------------------------------------------------------------------

    def _client_command(self, text: str) -> Ask | None:
        command = decode_client_command(text)
        match command:
            case SubmitJob():
                return self._submit(command)
            case SubscribeProgress():
                return self._subscribe(command)
            case UnsubscribeProgress():
                self._unsubscribe(command)
                return None
            case GetJobStatus():
                return self._when_allowed("status", command, lambda: self._status(command))
            case CancelJob():
                return self._when_allowed("cancel", command, lambda: self._cancel(command))
            case _:
                assert_never(command)

    def _submit(self, command: SubmitJob) -> Ask | None:
        submit = self._hooks.submit
        if submit is None:
            self._error("unsupported", "this server takes no jobs", command.message_id)
            return None
        if self._is_full(command.message_id):
            return None
        message_id = command.message_id
        client_id = self.subscriber.id
        submissions: dict[str, str | None] = {}
        if message_id is not UNSET:
            submissions = self.broadcaster.clients.submissions(client_id)
            if message_id in submissions:
                # Repeated after a reconnection. Answered by the hook that still runs, or here.
                if (job_id := submissions[message_id]) is not None:
                    self._tell_submitted(job_id, message_id)
                return None
            submissions[message_id] = None

        def answered(job_id: Any) -> None:
            if not isinstance(job_id, str) or not 1 <= len(job_id) <= 128:
                expected = "submit: expected a job id of 1 to 128 characters"
                failed(TypeError(f"{expected}, got {job_id!r}"))
                return
            known = self._follows_accepted(job_id)
            try:
                self.broadcaster.accept_job(job_id, self.subscriber.principal, client_id)
            except InvalidArgument as error:
                failed(error)
                return
            if message_id is not UNSET:
                submissions[message_id] = job_id
            if known:
                # Told of its acceptance long ago, and never twice: this says which job it is.
                self._reply(self._subscribed(job_id, message_id))

        def failed(error: Exception) -> None:
            if message_id is not UNSET:
                submissions.pop(message_id, None)
            self._hook_failed(error, message_id)

        return Ask(lambda: submit(command, self.subscriber.principal), answered, failed)

    def _follows_accepted(self, job_id: str) -> bool:
        state = self.broadcaster.jobs.get(job_id)
        return (
            state is not None
            and state.accepted_at is not None
            and job_id in self.broadcaster.clients.jobs_of(self.subscriber.id)
        )

    def _subscribed(self, job_id: str, message_id: str | UnsetType) -> JobSubscribed:
        now = self.broadcaster.clock.now_ms()
        return JobSubscribed(timestamp=now, job_id=job_id, message_id=message_id)

    def _tell_submitted(self, job_id: str, message_id: str) -> None:
        if self.broadcaster.jobs.get(job_id) is None:
            self._error("not_found", _NOT_FOUND, message_id)
            return
        self.broadcaster.clients.tell_state(self.subscriber.id, job_id)
        self.broadcaster.delivery.settle()

    def _subscribe(self, command: SubscribeProgress) -> Ask | None:
        def subscribe() -> None:
            if self.broadcaster.jobs.was_forgotten(command.job_id):
                self._error("not_found", _NOT_FOUND, command.message_id)
            elif not self._is_full(command.message_id):
                reply = self._subscribed(command.job_id, command.message_id)
                self.broadcaster.clients.subscribe(self.subscriber.id, command.job_id, [reply])
                self.broadcaster.delivery.settle()

        return self._when_allowed("subscribe", command, subscribe)

    def _unsubscribe(self, command: UnsubscribeProgress) -> None:
        self.broadcaster.unsubscribe_client_from_job(self.subscriber.id, command.job_id)
        self._reply(
            JobUnsubscribed(
                timestamp=self.broadcaster.clock.now_ms(),
                job_id=command.job_id,
                message_id=command.message_id,
            )
        )

    def _status(self, command: GetJobStatus) -> None:
        def tell() -> None:
            info = self.broadcaster.job(command.job_id)
            if info is None:
                self._error("not_found", _NOT_FOUND, command.message_id)
                return
            self._reply(
                JobStatusReply(
                    timestamp=self.broadcaster.clock.now_ms(),
                    job_id=command.job_id,
                    message_id=command.message_id,
                    job=info,
                )
            )

        # What is answered is as of now, and comes after all that was before.
        self.subscriber.when_caught_up(tell)

    def _cancel(self, command: CancelJob) -> Ask | None:
        cancel = self._hooks.cancel
        if cancel is None:
            self._error("unsupported", "this server cancels no jobs", command.message_id)
            return None

        def answered(_: Any) -> None:
            self._reply(
                JobCancelled(
                    timestamp=self.broadcaster.clock.now_ms(),
                    job_id=command.job_id,
                    message_id=command.message_id,
                )
            )

        return Ask(
            lambda: cancel(command.job_id, self.subscriber.principal),
            answered,
            lambda error: self._hook_failed(error, command.message_id),
        )

    # --- what both need --------------------------------------------------------------------------

    def _when_allowed(
        self,
        action: Action,
        command: SubscribeProgress | GetJobStatus | CancelJob,
        then: Callable[[], Ask | None],
    ) -> Ask | None:
        """Go on if the principal may do this with the job; else answer as if there were none."""
        look_up = self.broadcaster.look_up(command.job_id)
        if look_up is None:
            return self._decide(action, command, then)

        def learned(payloads: list[bytes]) -> Ask | None:
            for payload in payloads:
                self.broadcaster.intake.recall(payload)
            return self._decide(action, command, then) if self.subscriber.connected else None

        # The job may have been trimmed from what this node was started with.
        return Ask(look_up, learned, lambda error: self._hook_failed(error, command.message_id))

    def _decide(
        self,
        action: Action,
        command: SubscribeProgress | GetJobStatus | CancelJob,
        then: Callable[[], Ask | None],
    ) -> Ask | None:
        principal = self.subscriber.principal
        authorize = self._hooks.authorize
        state = self.broadcaster.jobs.get(command.job_id)
        if principal is not ANONYMOUS and state is not None and state.owner == principal.id:
            return then()
        if authorize is None:
            if principal is ANONYMOUS:
                return then()
            self._error("not_found", _NOT_FOUND, command.message_id)
            return None

        def answered(allowed: Any) -> Ask | None:
            if not self.subscriber.connected:
                return None
            if allowed is True:
                return then()
            self._error("not_found", _NOT_FOUND, command.message_id)
            return None

        def refused(error: Exception) -> None:
            # Not `internal`: a hook that fails for the jobs it does not know would tell them apart.
            logger.error("authorize failed for %r", self.subscriber, exc_info=error)
            self._error("not_found", _NOT_FOUND, command.message_id)

        return Ask(
            lambda: authorize(principal, action, command.job_id),
            answered,
            refused,
        )

    def _is_full(self, message_id: str | UnsetType) -> bool:
        most = self._limits.subscriptions_per_client
        if len(self.broadcaster.clients.jobs_of(self.subscriber.id)) < most:
            return False
        self._error("forbidden", f"expected at most {most} subscriptions", message_id)
        return True

    def _hook_failed(self, error: Exception, message_id: str | UnsetType) -> None:
        if isinstance(error, HookRefusal):
            self._error(error.code, error.error, message_id)
            return
        logger.error("a hook of the host failed for %r", self.subscriber, exc_info=error)
        self._error("internal", "the server could not do this", message_id)

    def _error(self, code: ErrorCode, error: str, message_id: str | UnsetType = UNSET) -> None:
        now = self.broadcaster.clock.now_ms()
        reply = ErrorReply(timestamp=now, error=error, code=code, message_id=message_id)
        while len(encode(reply)) > _MOST_BYTES:
            # Of the host's words; how many bytes one of them takes is not known before.
            error = error[: len(error) // 2]
            reply = ErrorReply(timestamp=now, error=error, code=code, message_id=message_id)
        self._reply(reply)

    def _reply(self, reply: Struct) -> None:
        """Answer in order: after the past, if the connection catches up, and earlier answers."""
        if isinstance(reply, ErrorReply):
            self._errors[reply.code] += 1
        subscriber = self._present()

        def send() -> None:
            self.broadcaster.delivery.send_to(subscriber, [reply_frame(reply)])
            self.broadcaster.delivery.settle()

        if subscriber.connected:
            subscriber.when_caught_up(send)

    def _present(self) -> Subscriber:
        """Return the connection to answer on: this one, or the one its client came back with.

        A hook may outlive its connection; the client that asks again is answered by it.
        """
        subscriber = self.subscriber
        if subscriber.connected or subscriber.kind == "monitor":
            return subscriber
        present = self.broadcaster.clients.get(subscriber.id)
        same = present is not None and present.principal.id == subscriber.principal.id
        return present if present is not None and same else subscriber

    def _close(self, code: CloseCode, reason: str) -> None:
        self.broadcaster.delivery.close(self.subscriber, code, reason)


def _chain(ask: Ask, then: Callable[[], Ask | None]) -> Ask:
    """Do one question, whatever further ones it leads to, and then another thing."""

    def after(following: Ask | None) -> Ask | None:
        return then() if following is None else _chain(following, then)

    return Ask(
        ask.call,
        lambda result: after(ask.answered(result)),
        lambda error: after(ask.failed(error)),
    )
