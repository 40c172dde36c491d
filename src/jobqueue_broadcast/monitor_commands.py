"""What becomes of a monitor's commands: topics and filters, the full state, a page of the past."""

from __future__ import annotations

from typing import assert_never

from msgspec import UNSET

from jobqueue_broadcast.answers import Answers
from jobqueue_broadcast.commands import (
    AnyMonitorCommand,
    Heartbeat,
    MonitorSubscribed,
    RequestFullState,
    ResyncRequest,
    ResyncResponse,
    Subscribe,
    decode_monitor_command,
)
from jobqueue_broadcast.errors import UnknownTopic
from jobqueue_broadcast.predicates import Filters, Subscription

__all__ = ["receive_from_monitor"]

_MOST_EVENTS = 1000


def receive_from_monitor(answers: Answers, text: str) -> None:
    """Carry out the command in a monitor's frame.

    Raises:
        BadFrame: There is none in it.
    """
    command = decode_monitor_command(text)
    # What is answered is as of now, and comes after all that was before.
    answers.subscriber.when_caught_up(lambda: _carry_out(answers, command))


def _carry_out(answers: Answers, command: AnyMonitorCommand) -> None:
    monitors = answers.broadcaster.monitors
    match command:
        case Subscribe():
            _subscribe(answers, command)
        case RequestFullState():
            answers.reply(monitors.snapshot_reply())
        case ResyncRequest():
            answers.reply(_page(answers, command))
        case Heartbeat():
            answers.reply(monitors.heartbeat_reply(answers.subscriber))
        case _:
            assert_never(command)


def _subscribe(answers: Answers, command: Subscribe) -> None:
    try:
        subscription = _subscription(command)
    except UnknownTopic:
        answers.error("invalid_field", "topics: expected known topics", command.message_id)
        return
    except ValueError:
        expected = "priority_range: expected [min, max] with min <= max"
        answers.error("invalid_field", expected, command.message_id)
        return
    answers.broadcaster.monitors.update(answers.subscriber, subscription)
    answers.reply(
        MonitorSubscribed(
            timestamp=answers.now,
            monitor_id=answers.subscriber.id,
            topics=sorted(subscription.topics),
        )
    )


def _subscription(command: Subscribe) -> Subscription:
    given = command.filters
    if given is UNSET:
        return Subscription.of(command.topics, None)
    filters = Filters.of(
        job_types=given.job_types or None,
        worker_ids=given.worker_ids or None,
        priority_range=given.priority_range or None,
    )
    return Subscription.of(command.topics, filters)


def _page(answers: Answers, command: ResyncRequest) -> ResyncResponse:
    asked = _MOST_EVENTS if command.max_events is UNSET else command.max_events
    return answers.broadcaster.monitors.page(
        answers.subscriber, command.since_timestamp, min(asked, _MOST_EVENTS)
    )
