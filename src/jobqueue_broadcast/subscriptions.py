"""Which clients an event goes to, by index: each client's jobs, and each job's clients.

A client's subscriptions outlive its connection for a while, for the same principal (wire protocol,
section 6), so what is kept here is the client and not its connection.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from jobqueue_broadcast.delivery import Subscriber

__all__ = ["Client", "JobIndex"]


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
        submissions: The job of each recent `submit_job`, by its `message_id`; `None` while the
            host's hook runs. A submission repeated after a reconnection is thereby not a second
            job. Made when first needed.
    """

    __slots__ = ("expires_at", "id", "jobs", "owner", "states", "submissions", "subscriber")

    def __init__(self, client_id: str) -> None:
        self.id = client_id
        self.owner: str | None = None
        self.jobs: dict[str, tuple[int, int]] = {}
        self.subscriber: Subscriber | None = None
        self.states = 0
        self.expires_at = 0.0
        self.submissions: dict[str, str | None] | None = None


class JobIndex:
    """All clients, by id and by job.

    A job mostly has one client, so a lone client stands in the table itself; a set for each would
    take 216 bytes more per subscription.
    """

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._by_job: dict[str, Client | set[Client]] = {}
        self._expiring: list[tuple[float, str]] = []
        self.subscription_count = 0

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
        if client.jobs.pop(job_id, None) is None:
            return
        self.subscription_count -= 1
        found = self._by_job[job_id]
        if isinstance(found, Client):
            del self._by_job[job_id]
            return
        found.discard(client)
        if len(found) == 1:
            self._by_job[job_id] = found.pop()

    def end_job(self, job_id: str) -> None:
        """End every subscription to a job."""
        for client in tuple(self.of_job(job_id)):
            self.unsubscribe(client, job_id)

    def leave(self, client: Client, expires_at: float) -> None:
        """Note that a client has no connection, and until when it is expected back."""
        client.subscriber = None
        client.expires_at = expires_at
        heapq.heappush(self._expiring, (expires_at, client.id))

    def expire(self, now: float) -> list[Client]:
        """Let go of the clients that did not come back in time; return them."""
        gone: list[Client] = []
        while self._expiring and self._expiring[0][0] <= now:
            expires_at, client_id = heapq.heappop(self._expiring)
            client = self._clients.get(client_id)
            # An older entry of a client that came back, or left again, says nothing.
            if client and client.subscriber is None and client.expires_at == expires_at:
                self.remove(client)
                gone.append(client)
        return gone

    def remove(self, client: Client) -> None:
        """Forget a client and all its subscriptions."""
        for job_id in list(client.jobs):
            self.unsubscribe(client, job_id)
        self._clients.pop(client.id, None)
