"""What becomes of a client's commands: to submit, subscribe to, ask about and cancel jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import assert_never

from msgspec import UnsetType

from jobqueue_broadcast.answers import Answers
from jobqueue_broadcast.asks import Ask, Hooks, chain
from jobqueue_broadcast.auth import Action
from jobqueue_broadcast.commands import (
    CancelJob,
    GetJobStatus,
    JobCancelled,
    JobStatusReply,
    JobSubscribed,
    JobUnsubscribed,
    SubmitJob,
    SubscribeProgress,
    UnsubscribeProgress,
    decode_client_command,
)
from jobqueue_broadcast.job_access import JobAccess, JobCommand
from jobqueue_broadcast.submissions import Submission

__all__ = ["ClientCommands"]


class ClientCommands:
    """The commands of one client.

    Args:
        answers: The answers to it.
        hooks: What the host decides.
        subscription_limit: How many jobs it may be subscribed to.
    """

    __slots__ = ("_answers", "_hooks", "_subscription_limit")

    def __init__(self, answers: Answers, hooks: Hooks, subscription_limit: int) -> None:
        self._answers = answers
        self._hooks = hooks
        self._subscription_limit = subscription_limit

    def open(self, jobs: Iterable[str]) -> Ask | None:
        """Subscribe to jobs, one after the other, each as `subscribe_progress` would."""
        waiting = iter(list(jobs))

        def next_job() -> Ask | None:
            for job_id in waiting:
                ask = self._subscribe(SubscribeProgress(job_id=job_id))
                if ask is not None:
                    return chain(ask, next_job)
            return None

        return next_job()

    def receive(self, text: str) -> Ask | None:
        """Carry out the command in a client's frame.

        Raises:
            BadFrame: There is none in it.
        """
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

    def _when_allowed(
        self, action: Action, command: JobCommand, then: Callable[[], Ask | None]
    ) -> Ask | None:
        return JobAccess(self._answers, self._hooks.authorize, action, command, then).ask()

    def _submit(self, command: SubmitJob) -> Ask | None:
        submit = self._hooks.submit
        if submit is None:
            self._answers.error("unsupported", "this server takes no jobs", command.message_id)
            return None
        if self._is_full(command.message_id):
            return None
        return Submission(self._answers, command).ask(submit)

    def _subscribe(self, command: SubscribeProgress) -> Ask | None:
        return self._when_allowed("subscribe", command, lambda: self._subscribe_now(command))

    def _subscribe_now(self, command: SubscribeProgress) -> None:
        answers, job_id, message_id = self._answers, command.job_id, command.message_id
        if answers.broadcaster.jobs.was_forgotten(job_id):
            answers.not_found(message_id)
        elif not self._is_full(message_id):
            reply = JobSubscribed(timestamp=answers.now, job_id=job_id, message_id=message_id)
            answers.broadcaster.clients.subscribe(answers.subscriber.id, job_id, [reply])
            answers.broadcaster.delivery.settle()

    def _is_full(self, message_id: str | UnsetType) -> bool:
        answers, most = self._answers, self._subscription_limit
        if len(answers.broadcaster.clients.jobs_of(answers.subscriber.id)) < most:
            return False
        answers.error("forbidden", f"expected at most {most} subscriptions", message_id)
        return True

    def _unsubscribe(self, command: UnsubscribeProgress) -> None:
        answers, job_id = self._answers, command.job_id
        answers.broadcaster.unsubscribe_client_from_job(answers.subscriber.id, job_id)
        answers.reply(
            JobUnsubscribed(timestamp=answers.now, job_id=job_id, message_id=command.message_id)
        )

    def _status(self, command: GetJobStatus) -> None:
        # What is answered is as of now, and comes after all that was before.
        self._answers.subscriber.when_caught_up(lambda: self._tell_status(command))

    def _tell_status(self, command: GetJobStatus) -> None:
        answers, job_id, message_id = self._answers, command.job_id, command.message_id
        job = answers.broadcaster.job(job_id)
        if job is None:
            answers.not_found(message_id)
            return
        answers.reply(
            JobStatusReply(timestamp=answers.now, job_id=job_id, message_id=message_id, job=job)
        )

    def _cancel(self, command: CancelJob) -> Ask | None:
        answers, job_id, message_id = self._answers, command.job_id, command.message_id
        cancel = self._hooks.cancel
        if cancel is None:
            answers.error("unsupported", "this server cancels no jobs", message_id)
            return None
        return Ask(
            lambda: cancel(job_id, answers.subscriber.principal),
            lambda _: answers.reply(
                JobCancelled(timestamp=answers.now, job_id=job_id, message_id=message_id)
            ),
            lambda error: answers.hook_failed(error, message_id),
        )
