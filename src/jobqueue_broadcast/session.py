"""One connection's conversation, sans-I/O: frames in, replies and questions to the host out.

Replies go to the connection through the broadcaster, in order with its events (`answers`). What
only the host can decide comes back to the adapter as an `Ask` (`asks`). The commands are the wire
protocol's section 5 (`monitor_commands`, `client_commands`); here is what every frame meets before
it is taken for one: is the connection still registered, is it text, is it not one too many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from jobqueue_broadcast.answers import Answers
from jobqueue_broadcast.asks import Ask, Cancel, Hooks, Submit
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.client_commands import ClientCommands
from jobqueue_broadcast.commands import BadFrame
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.errors import CloseCode
from jobqueue_broadcast.monitor_commands import receive_from_monitor
from jobqueue_broadcast.rate_limit import TokenBucket

__all__ = ["Ask", "Cancel", "Hooks", "Session", "SessionLimits", "Submit"]


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


class Session:
    """One connection's conversation.

    Args:
        broadcaster: What the commands act on.
        subscriber: The connection, as registered.
        hooks: What the host decides.
        limits: What the connection may ask for.
        errors: Counts the errors that were answered, by code; for several sessions together.
    """

    # One per connection, and most connections ask for nothing: what a command needs beside these
    # (`Answers`, `ClientCommands`) is made for the command, and goes with it.
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
        return self._client_commands(self._answers()).open(jobs)

    def receive(self, message: str | bytes) -> Ask | None:
        """Take a frame from the peer: text as `str`, binary as `bytes`."""
        if not self.subscriber.connected:
            return None
        if isinstance(message, bytes):
            self._close(CloseCode.UNSUPPORTED_DATA, "expected text frames")
            return None
        if not self._within_rate():
            return None
        answers = self._answers()
        try:
            if self.subscriber.kind == "client":
                return self._client_commands(answers).receive(message)
            receive_from_monitor(answers, message)
        except BadFrame as bad:
            answers.reply(bad.reply(answers.now))
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
            self._answers().error("rate_limited", "too many commands: wait before the next")
        return False

    def _answers(self) -> Answers:
        return Answers(self.broadcaster, self.subscriber, self._errors)

    def _client_commands(self, answers: Answers) -> ClientCommands:
        return ClientCommands(answers, self._hooks, self._limits.subscriptions_per_client)

    def _close(self, code: CloseCode, reason: str) -> None:
        self.broadcaster.delivery.close(self.subscriber, code, reason)
