"""Whether a client may do what it asks with a job; if not, the answer is as if there were no job.

A job may be touched by whoever submitted it and, where the host set up no authentication, by
everyone. In all other cases the host's `authorize` hook decides, and without one nobody may.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from jobqueue_broadcast.answers import Answers
from jobqueue_broadcast.asks import Ask
from jobqueue_broadcast.auth import ANONYMOUS, Action, Authorize
from jobqueue_broadcast.commands import CancelJob, GetJobStatus, SubscribeProgress

__all__ = ["JobAccess", "JobCommand"]

logger = logging.getLogger("jobqueue_broadcast")

JobCommand: TypeAlias = SubscribeProgress | GetJobStatus | CancelJob
"""What a client asks of one job, and must be allowed to."""


class JobAccess:
    """One command about a job, until it is known whether its client may give it.

    Args:
        answers: The answers to the client.
        authorize: The host's hook, if there is one.
        action: What the command is to the hook.
        command: The command.
        then: What to do if the client may.
    """

    __slots__ = ("_action", "_answers", "_authorize", "_command", "_then")

    def __init__(
        self,
        answers: Answers,
        authorize: Authorize | None,
        action: Action,
        command: JobCommand,
        then: Callable[[], Ask | None],
    ) -> None:
        self._answers = answers
        self._authorize = authorize
        self._action: Action = action
        self._command = command
        self._then = then

    def ask(self) -> Ask | None:
        """Find out, and go on if the client may."""
        # A job unknown here may have been trimmed from what this node was started with.
        look_up = self._answers.broadcaster.look_up(self._command.job_id)
        if look_up is None:
            return self._decide()
        return Ask(look_up, self._learned, self._look_up_failed)

    def _learned(self, payloads: list[bytes]) -> Ask | None:
        for payload in payloads:
            self._answers.broadcaster.intake.recall(payload)
        return self._decide() if self._answers.subscriber.connected else None

    def _look_up_failed(self, error: Exception) -> None:
        self._answers.hook_failed(error, self._command.message_id)

    def _decide(self) -> Ask | None:
        if self._is_own():
            return self._then()
        principal, authorize = self._answers.subscriber.principal, self._authorize
        if authorize is not None:
            return Ask(
                lambda: authorize(principal, self._action, self._command.job_id),
                self._answered,
                self._refused,
            )
        if principal is ANONYMOUS:
            return self._then()
        self._answers.not_found(self._command.message_id)
        return None

    def _is_own(self) -> bool:
        principal = self._answers.subscriber.principal
        state = self._answers.broadcaster.jobs.get(self._command.job_id)
        return principal is not ANONYMOUS and state is not None and state.owner == principal.id

    def _answered(self, allowed: Any) -> Ask | None:
        if not self._answers.subscriber.connected:
            return None
        if allowed is True:
            return self._then()
        self._answers.not_found(self._command.message_id)
        return None

    def _refused(self, error: Exception) -> None:
        # Not `internal`: a hook that fails for the jobs it does not know would tell them apart.
        logger.error("authorize failed for %r", self._answers.subscriber, exc_info=error)
        self._answers.not_found(self._command.message_id)
