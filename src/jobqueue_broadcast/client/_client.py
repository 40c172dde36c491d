"""The client: submits jobs, watches them, awaits their results."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, TypedDict, Unpack, cast
from urllib.parse import quote

from msgspec import UNSET

from jobqueue_broadcast.client._endpoint import Endpoint, Token
from jobqueue_broadcast.client._frames import (
    CLIENT_REPLIES,
    Envelope,
    ErrorFrame,
    decode_client_update,
    decode_resync_required,
)
from jobqueue_broadcast.client._items import Gap
from jobqueue_broadcast.client._jobs import Jobs, JobUpdate, JobWatch, UpdateQueue
from jobqueue_broadcast.client._lane import Lane, raised_again
from jobqueue_broadcast.client._peer import ConnectionOptions, Peer, new_message_id
from jobqueue_broadcast.client_format import (
    ClientJobAccepted,
    ClientJobStatusChanged,
    FailureResult,
    SuccessResult,
)
from jobqueue_broadcast.commands import (
    CancelJob,
    GetJobStatus,
    JobInfo,
    JobSubscribed,
    JobUnsubscribed,
    ResyncRequired,
    SubmitJob,
    SubscribeProgress,
    UnsubscribeProgress,
)
from jobqueue_broadcast.errors import CommandFailed, JobFailedError
from jobqueue_broadcast.events import encode
from jobqueue_broadcast.positions import Position

__all__ = ["ClientPeer", "Workflow", "connect_client"]

# Servers and proxies take request lines of 8 KiB; the rest of the line is well below one of these.
_MOST_JOBS_IN_URL = 4096
_MOST_JOBS_NAMED = 1000

# A server's default burst is 100 commands; no need to wait for each answer in turn.
_WIDTH = 16


class Workflow(TypedDict, total=False):
    """Optional fields of a submission that say where it stands in a workflow."""

    workflow_id: str
    workflow_priority: int
    workflow_datetime: int
    current_step: int
    total_steps: int
    customer_id: str


@asynccontextmanager
async def connect_client(
    url: str,
    *,
    client_id: str,
    token: Token = None,
    kept_jobs: int = 1000,
    **options: Unpack[ConnectionOptions],
) -> AsyncGenerator[ClientPeer]:
    """Submit jobs and follow them: `async with connect_client(...) as client`.

    Entering the block waits for the first connection, for as long as the server cannot be reached;
    `anyio.fail_after` sets an end to that. From then on the client reconnects by itself; commands
    that were not answered are sent again, and nobody who waits notices. Works on asyncio and trio.

    Args:
        url: `ws://host:port` or `wss://…`.
        client_id: 1 to 128 characters of `A-Z a-z 0-9 . _ ~ : -`. Another connection with the
            same id and principal ends this one (`ConnectionEnded`, code 4409).
        token: A bearer token, or a function, async or not, called for one at every connect. What
            the function raises ends the client and reaches the caller.
        kept_jobs: How many jobs that have ended are kept with their outcomes, for `result` and
            `watch` to answer at once; later they ask the server.
        **options: See `ConnectionOptions`.

    Raises:
        ConnectRefused: The server answered with an HTTP status that retrying will not change.
        ConnectionEnded: It closed the connection with a code that says "do not reconnect".
        InvalidArgument: An argument cannot be right.
    """
    peer = ClientPeer(Endpoint(url, "client", client_id), token, options, kept_jobs)
    async with peer.running():
        yield peer


class ClientPeer(Peer):
    """A client, as `connect_client` yields it. Its methods may be called from several tasks.

    Every method raises `CommandFailed` when the server refuses the command, and `ConnectionEnded`
    or `ConnectRefused` when the peer came to its end.
    """

    def __init__(
        self, endpoint: Endpoint, token: Token, options: ConnectionOptions, kept_jobs: int
    ) -> None:
        super().__init__(endpoint, token, None, options)
        # The answer to a submission names no command, so there is one at a time.
        self._submissions = Lane(1)
        self._commands = Lane(_WIDTH)
        # Apart, so that a caller's command does not wait behind thousands of them.
        self._renewals = Lane(_WIDTH)
        self._lanes = (self._submissions, self._commands, self._renewals)
        self._jobs = Jobs(kept_jobs)
        self._unconfirmed: set[str] = set()
        self._fence: str | None = None

    # --- what a caller does ----------------------------------------------------------------------

    async def submit(
        self,
        job_type: str,
        *,
        payload: dict[str, Any] | None = None,
        priority: int = 0,
        requirements: dict[str, Any] | None = None,
        **workflow: Unpack[Workflow],
    ) -> str:
        """Submit a job and return its id; this client is subscribed to it.

        One submission is under way at a time. If the connection breaks before the answer, it is
        sent again under the same `message_id`, by which the server knows it: it becomes one job
        (as long as the server remembers: not across its restart).

        Args:
            job_type: What kind of job.
            payload: What it works on; must be JSON, and fit the server's limit (64 KiB by default)
                with the rest.
            priority: Its priority.
            requirements: What a worker must have.
            **workflow: Where it stands in a workflow.
        """
        message_id = new_message_id()
        command = SubmitJob(
            message_id=message_id,
            job_type=job_type,
            priority=priority,
            payload=UNSET if payload is None else payload,
            requirements=UNSET if requirements is None else requirements,
            **workflow,
        )
        answer = await self._ask(self._submissions, message_id, command)
        # A job this client follows already is not accepted again; the server says which it is.
        return answer.job_id if isinstance(answer, JobSubscribed) else cast(str, answer)

    async def subscribe(self, job_id: str) -> None:
        """Subscribe to a job; `watch` and `result` do that by themselves.

        Raises:
            CommandFailed: `not_found`: there is no such job any more, or it is another's.
        """
        job = self._jobs.get_or_add(job_id)
        job.wanted = True
        try:
            if self._jobs.let_go and job.accepted is None:
                # To the server it may be subscribed still; then its state would not be sent.
                await self._send(UnsubscribeProgress, job_id)
            await self._send(SubscribeProgress, job_id)
        except CommandFailed as error:
            self._jobs.remove(job_id, error)
            raise

    async def unsubscribe(self, job_id: str) -> None:
        """End the subscription to a job; whoever watches it gets `CommandFailed`."""
        self._jobs.remove(job_id, CommandFailed("unsubscribed", f"unsubscribed from {job_id}"))
        await self._send(UnsubscribeProgress, job_id)
        self._jobs.remove(job_id, CommandFailed("unsubscribed", f"unsubscribed from {job_id}"))

    async def status(self, job_id: str) -> JobInfo:
        """Return what the server knows of a job.

        Raises:
            CommandFailed: `not_found`: nothing, or the job is another's.
        """
        return cast(JobInfo, (await self._send(GetJobStatus, job_id)).job)

    async def cancel(self, job_id: str) -> None:
        """Ask the host to cancel a job; how it then ends is told by `watch` and `result`."""
        await self._send(CancelJob, job_id)

    def watch(self, job_id: str) -> JobWatch:
        """Follow a job: `async for update in client.watch(job_id)`, from its present state on.

        Yields `ClientJobAccepted`, `ClientJobAssigned`, `ClientJobStatusChanged`,
        `ClientJobProgress` and, at last, `ClientCompleteJob`; a status `cancelled`, `timeout` or
        `unworkable` is the end as well. Progress that was not read in time is replaced by newer
        progress. A `Gap` tells that updates were missed (never an outcome); the present state
        follows it. A host's own frames come as `UnknownEvent`.
        """
        return JobWatch(lambda queue: self._follow(job_id, queue))

    async def result(self, job_id: str) -> Any:
        """Wait for a job to end and return its `result`.

        Raises:
            JobFailedError: The job failed, or ended as `cancelled`, `timeout` or `unworkable`.
            CommandFailed: `not_found`: there is no such job any more, or it is another's.
        """
        outcome = await self.watch(job_id).outcome()
        if isinstance(outcome, ClientJobStatusChanged):
            raise JobFailedError(job_id, outcome.status)
        match outcome.result:
            case FailureResult(error=error):
                raise JobFailedError(job_id, error)
            case SuccessResult(data=data):
                return data

    async def _send(
        self,
        make: type[SubscribeProgress | UnsubscribeProgress | GetJobStatus | CancelJob],
        job_id: str,
    ) -> Any:
        message_id = new_message_id()
        return await self._ask(
            self._commands, message_id, make(job_id=job_id, message_id=message_id)
        )

    async def _follow(self, job_id: str, queue: UpdateQueue) -> None:
        if self._failure is not None:
            raise raised_again(self._failure)
        job = self._jobs.get_or_add(job_id)
        job.watch(queue)
        if not job.wanted and job.outcome is None:
            await self.subscribe(job_id)

    # --- one connection --------------------------------------------------------------------------

    def _parameters(self) -> Iterable[tuple[str, str]]:
        named: list[str] = []
        room = _MOST_JOBS_IN_URL
        for job_id in islice(self._jobs.live(), _MOST_JOBS_NAMED):
            room -= len(quote(job_id)) + 1
            if room < 0:
                break
            if "," not in job_id:
                named.append(job_id)
        return [("jobs", ",".join(named))] if named else []

    def _opened(self, send: Callable[[bytes], None]) -> None:
        self._unconfirmed = set(self._jobs.live())
        # Answered after everything the server owes this connection: the states of jobs of before
        # cannot then be taken for the answer to a submission.
        self._fence = new_message_id()
        send(encode(UnsubscribeProgress(job_id=self._fence, message_id=self._fence)))
        self._commands.connect(send)

    def _passed_fence(self, send: Callable[[bytes], None]) -> None:
        self._fence = None
        for job_id in self._unconfirmed:
            self._renew(job_id)
        self._unconfirmed = set()
        self._renewals.connect(send)
        self._submissions.connect(send)

    def _renew(self, job_id: str) -> None:
        """Subscribe again to a job the server did not confirm, for an answer that names it."""

        def answered(answer: Any) -> None:
            if isinstance(answer, CommandFailed):
                self._jobs.remove(job_id, answer)

        message_id = new_message_id()
        command = SubscribeProgress(job_id=job_id, message_id=message_id)
        self._renewals.post(message_id, encode(command), answered)

    def _ended(self, error: Exception) -> None:
        self._jobs.fail(error)

    async def _received(self, frame: bytes, envelope: Envelope) -> None:
        if envelope.type == "resync_required":
            self._take_gap(decode_resync_required(frame))
            return
        if isinstance(envelope.position, str):
            position = self._follow_position(envelope.position)
            # An acceptance may carry a position before that of a state sent earlier.
            if self._position is None or position > self._position:
                self._position = position
        if envelope.type in CLIENT_REPLIES:
            self._take_reply(CLIENT_REPLIES[envelope.type].decode(frame))
        elif isinstance(envelope.job_id, str):
            self._take_update(envelope.job_id, decode_client_update(frame, envelope.type))

    def _take_gap(self, required: ResyncRequired) -> None:
        self._position = Position.parse(required.position)
        self._jobs.tell_gap(Gap(reason=required.reason, position=required.position))

    def _take_update(self, job_id: str, update: JobUpdate) -> None:
        job = self._jobs.get_or_add(job_id)
        # Of a job nobody here asked for: the one that is being submitted.
        answers = (
            isinstance(update, ClientJobAccepted) and not job.wanted and self._submissions.under_way
        )
        job.wanted = job.wanted or answers
        self._jobs.take(job_id, update)
        if answers:
            self._submissions.answer_oldest(job_id)

    def _take_reply(self, reply: Any) -> None:
        if isinstance(reply, JobSubscribed):
            self._unconfirmed.discard(reply.job_id)
        if isinstance(reply, JobUnsubscribed) and reply.message_id == self._fence:
            if self._connection is not None:
                self._passed_fence(self._connection.send)
            return
        answer = reply
        if isinstance(reply, ErrorFrame):
            if reply.code == "rate_limited":
                self._slow_down()
                return
            answer = CommandFailed(reply.code, reply.error)
        # One without a message_id is about a job in the URL, which `_renew` asks for again.
        if isinstance(reply.message_id, str):
            any(lane.answer(reply.message_id, answer) for lane in self._lanes)
