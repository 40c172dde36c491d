"""One `submit_job`: the host's hook takes it, and repeated it is no second job.

A client that lost its connection repeats what was not answered, under the same `message_id`.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from jobqueue_broadcast.answers import Answers
from jobqueue_broadcast.asks import Ask, Submit
from jobqueue_broadcast.commands import JobSubscribed, SubmitJob
from jobqueue_broadcast.errors import InvalidArgument

__all__ = ["Submission"]


class Submission:
    """One submission, from its frame to its answer.

    Args:
        answers: The answers to the client.
        command: What the client submitted.
    """

    __slots__ = ("_answers", "_command", "_recent")

    def __init__(self, answers: Answers, command: SubmitJob) -> None:
        self._answers = answers
        self._command = command
        # The client's, by `message_id`: the job's id, or `None` while the hook runs.
        self._recent: dict[str, str | None] = {}

    def ask(self, submit: Submit) -> Ask | None:
        """Ask the host to create the job; `None`: it has been asked before."""
        command, subscriber = self._command, self._answers.subscriber
        message_id = command.message_id
        if message_id is not UNSET:
            self._recent = self._answers.broadcaster.clients.submissions(subscriber.id)
            if message_id in self._recent:
                # Repeated after a reconnection. Answered by the hook that still runs, or here.
                if (job_id := self._recent[message_id]) is not None:
                    self._tell_again(job_id)
                return None
            self._recent[message_id] = None
        return Ask(lambda: submit(command, subscriber.principal), self._answered, self._failed)

    def _tell_again(self, job_id: str) -> None:
        broadcaster = self._answers.broadcaster
        if broadcaster.jobs.get(job_id) is None:
            self._answers.not_found(self._command.message_id)
            return
        broadcaster.clients.tell_state(self._answers.subscriber.id, job_id)
        broadcaster.delivery.settle()

    def _answered(self, job_id: Any) -> None:
        if not isinstance(job_id, str) or not 1 <= len(job_id) <= 128:
            expected = "submit: expected a job id of 1 to 128 characters"
            self._failed(TypeError(f"{expected}, got {job_id!r}"))
            return
        known = self._follows_accepted(job_id)
        subscriber = self._answers.subscriber
        try:
            self._answers.broadcaster.accept_job(job_id, subscriber.principal, subscriber.id)
        except InvalidArgument as error:
            self._failed(error)
            return
        self._note(job_id)
        if known:
            self._tell_which(job_id)

    def _failed(self, error: Exception) -> None:
        message_id = self._command.message_id
        if message_id is not UNSET:
            self._recent.pop(message_id, None)
        self._answers.hook_failed(error, message_id)

    def _follows_accepted(self, job_id: str) -> bool:
        broadcaster = self._answers.broadcaster
        state = broadcaster.jobs.get(job_id)
        return (
            state is not None
            and state.accepted_at is not None
            and job_id in broadcaster.clients.jobs_of(self._answers.subscriber.id)
        )

    def _note(self, job_id: str) -> None:
        if self._command.message_id is not UNSET:
            self._recent[self._command.message_id] = job_id

    def _tell_which(self, job_id: str) -> None:
        """Say which job it is: its acceptance the client was told long ago, and never twice."""
        self._answers.reply(
            JobSubscribed(
                timestamp=self._answers.now, job_id=job_id, message_id=self._command.message_id
            )
        )
