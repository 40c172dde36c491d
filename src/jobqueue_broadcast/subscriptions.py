"""Which clients an event goes to, by index: each client's jobs, and each job's clients.

A client's subscriptions outlive its connection for a while, for the same principal (wire protocol,
section 6), so what is kept here is the client and not its connection.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import TypeAlias

from jobqueue_broadcast.delivery import Subscriber

__all__ = ["Client", "JobIndex", "OnChange"]

OnChange: TypeAlias = Callable[[str, str, tuple[int, int] | None], None]


class Client:
    """A client, connected or expected back.

    Attributes:
        id: Its id.
        owner: The principal the id belongs to; `None` until one connects.
        jobs: The jobs it is subscribed to, each with the sequence of the newest event, and the
            number of the state sent, when it subscribed.
        subscriber: Its connection, if it has one.
        states: How many states were sent to it so far (see `Position.state`).
        expires_at: When its subscriptions end, by the steady clock, if it stays away.
        expiring: Whether the index is to look at it again when some such time has come.
        submissions: The job of each recent `submit_job`, by its `message_id`; `None` while the
            host's hook runs. A submission repeated after a reconnection is thereby not a second
            job. Made when first needed.
    """

    __slots__ = (
        "expires_at",
        "expiring",
        "id",
        "jobs",
        "owner",
        "states",
        "submissions",
        "subscriber",
    )

    def __init__(self, client_id: str) -> None:
        self.id = client_id
        self.owner: str | None = None
        self.jobs: dict[str, tuple[int, int]] = {}
        self.subscriber: Subscriber | None = None
        self.states = 0
        self.expires_at = 0.0
        self.expiring = False
        self.submissions: dict[str, str | None] | None = None


class JobIndex:
    """All clients, by id and by job.

    A job mostly has one client, so a lone client stands in the table itself; a set for each would
    take 216 bytes more per subscription.
    """

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._by_job: dict[str, Client | set[Client]] = {}
        self._expiring: list[tuple[float, int, Client]] = []
        self._left = 0
        self.subscription_count = 0
        self.on_change: OnChange | None = None
        """Told of each subscription that begins, begins anew (with when), or ends (`None`)."""

    def __len__(self) -> int:
        return len(self._clients)

    def get(self, client_id: str) -> Client | None:
        """Return a client that is connected or expected back."""
        return self._clients.get(client_id)

    def get_or_add(self, client_id: str) -> Client:
        """Return a client, made when missing."""
        client = self._clients.get(client_id)
        if client is None:
            client = self._clients[client_id] = Client(client_id)
        return client

    def of_job(self, job_id: str) -> Iterable[Client]:
        """Return the clients subscribed to a job."""
        found = self._by_job.get(job_id)
        if found is None:
            return ()
        return (found,) if isinstance(found, Client) else found

    def subscribe(self, client: Client, job_id: str, at: tuple[int, int]) -> None:
        """Subscribe a client to a job, as of a sequence and state number."""
        if self.on_change is not None:
            self.on_change(client.id, job_id, at)
        if job_id in client.jobs:
            client.jobs[job_id] = at
            return
        client.jobs[job_id] = at
        self.subscription_count += 1
        found = self._by_job.get(job_id)
        if found is None:
            self._by_job[job_id] = client
        elif isinstance(found, Client):
            self._by_job[job_id] = {found, client}
        else:
            found.add(client)

    def unsubscribe(self, client: Client, job_id: str) -> None:
        """End a subscription, if there is one."""
        if job_id not in client.jobs:
            return
        if self.on_change is not None:
            self.on_change(client.id, job_id, None)
        self._forget(client, job_id)

    def _forget(self, client: Client, job_id: str) -> None:
        del client.jobs[job_id]
        self.subscription_count -= 1
        found = self._by_job[job_id]
        if isinstance(found, Client):
            del self._by_job[job_id]
            return
        found.discard(client)
        if len(found) == 1:
            self._by_job[job_id] = found.pop()

    def restore(self, client: Client, jobs: dict[str, tuple[int, int]]) -> None:
        """Make a client's subscriptions those it has on another node."""
        on_change, self.on_change = self.on_change, None
        for job_id in client.jobs.keys() - jobs.keys():
            self.unsubscribe(client, job_id)
        for job_id, since in jobs.items():
            self.subscribe(client, job_id, since)
        self.on_change = on_change

    def end_job(self, job_id: str) -> None:
        """End every subscription to a job."""
        for client in tuple(self.of_job(job_id)):
            self.unsubscribe(client, job_id)

    def leave(self, client: Client, expires_at: float) -> None:
        """Note that a client has no connection, and until when it is expected back."""
        client.subscriber = None
        client.expires_at = expires_at
        if not client.expiring:
            self._note(client)

    def expire(self, now: float) -> list[Client]:
        """Let go of the clients that did not come back in time; return them."""
        gone: list[Client] = []
        while self._expiring and self._expiring[0][0] <= now:
            client = heapq.heappop(self._expiring)[2]
            client.expiring = False
            if client.subscriber is not None:
                continue
            if client.expires_at > now:
                # It came back, and left again.
                self._note(client)
                continue
            self.remove(client)
            gone.append(client)
        return gone

    def remove(self, client: Client) -> None:
        """Forget a client and all its subscriptions."""
        for job_id in list(client.jobs):
            # It may have gone to another node: that its subscriptions end here is said to nobody.
            self._forget(client, job_id)
        # It may have come back from there, as another one.
        if self._clients.get(client.id) is client:
            del self._clients[client.id]

    def _note(self, client: Client) -> None:
        """Look at a client again when its time has come; one entry, however often it left."""
        client.expiring = True
        self._left += 1
        heapq.heappush(self._expiring, (client.expires_at, self._left, client))
