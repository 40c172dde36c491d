"""What a peer is answered: each reply in order with its events, each error bounded and counted."""

from __future__ import annotations

import logging
from collections import Counter

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.commands import ErrorCode, ErrorReply
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.errors import HookRefusal
from jobqueue_broadcast.events import encode
from jobqueue_broadcast.frames import reply_frame

__all__ = ["Answers"]

logger = logging.getLogger("jobqueue_broadcast")

_MOST_BYTES = 1024


class Answers:
    """The answers to what one connection asks.

    Args:
        broadcaster: What the commands act on, and what sends the answers.
        subscriber: The connection the commands came on.
        errors: Counts the errors that were answered, by code.
    """

    __slots__ = ("_errors", "broadcaster", "subscriber")

    def __init__(
        self, broadcaster: EventBroadcaster, subscriber: Subscriber, errors: Counter[str]
    ) -> None:
        self.broadcaster = broadcaster
        self.subscriber = subscriber
        self._errors = errors

    @property
    def now(self) -> int:
        """The timestamp of an answer that is made now."""
        return self.broadcaster.clock.now_ms()

    def reply(self, reply: Struct) -> None:
        """Answer in order: after the past, if the connection catches up, and earlier answers."""
        if isinstance(reply, ErrorReply):
            self._errors[reply.code] += 1
        subscriber = self._present()

        def send() -> None:
            self.broadcaster.delivery.send_to(subscriber, [reply_frame(reply)])
            self.broadcaster.delivery.settle()

        if subscriber.connected:
            subscriber.when_caught_up(send)

    def error(self, code: ErrorCode, error: str, message_id: str | UnsetType = UNSET) -> None:
        """Answer that a command was not carried out, in no more than 1 KiB."""
        reply = ErrorReply(timestamp=self.now, error=error, code=code, message_id=message_id)
        while len(encode(reply)) > _MOST_BYTES:
            # Of the host's words; how many bytes one of them takes is not known before.
            reply = replace(reply, error=reply.error[: len(reply.error) // 2])
        self.reply(reply)

    def not_found(self, message_id: str | UnsetType) -> None:
        """Answer the same for a job that is someone else's and for one that does not exist."""
        self.error("not_found", "no such job, or it is not yours", message_id)

    def hook_failed(self, error: Exception, message_id: str | UnsetType) -> None:
        """Answer what a hook raised: its refusal in its words, anything else without details."""
        if isinstance(error, HookRefusal):
            self.error(error.code, error.error, message_id)
            return
        logger.error("a hook of the host failed for %r", self.subscriber, exc_info=error)
        self.error("internal", "the server could not do this", message_id)

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
