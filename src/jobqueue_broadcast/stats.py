"""The figures of a broadcaster, as one typed value."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["BroadcasterStats"]


class BroadcasterStats(Struct, frozen=True, kw_only=True):
    """What a broadcaster holds and has done so far; `EventBroadcaster.stats` returns it.

    Figures named `..._total` only grow. The others are as of now, and each has the bound named
    beside it.
    """

    monitors: int
    clients: int
    monitor_groups: int
    """Different monitor subscriptions; monitors with the same one share their frames."""
    clients_away: int
    """Clients without a connection, expected back for `client_retention` seconds."""
    subscriptions: int
    """Subscriptions to jobs; at most `subscriptions_per_client` each."""
    jobs_open: int
    """Jobs that have not ended; at most `open_job_limit`."""
    jobs_ended: int
    """Ended jobs kept for newcomers; at most `ended_job_limit`, for `job_retention` seconds."""
    workers: int
    machines: int
    history_events: int
    """Events retained; at most `history_limit`."""
    history_bytes: int
    """Their frames; at most `history_byte_limit`."""
    behind: int
    """Connections that are behind; each may have `outbox_limit` bytes waiting."""
    outbox_bytes: int
    outcomes_waiting: int
    """Outcomes that no client has taken yet; at most `undelivered_limit`."""
    revoked: int
    """Revoked principals kept by name; at most `revocation_limit`."""

    events_total: int
    """Events taken from the backplane, and so broadcast."""
    encodings_total: int
    """Frames encoded, in either format; not per connection."""
    frames_total: int
    """Frames written to connections."""
    writes_total: int
    """Batches written to connections."""
    write_errors_total: int
    conflated_total: int
    """Frames dropped from an outbox because a newer one, or an outcome, made them pointless."""
    too_slow_total: int
    """Connections closed with 4408 because their outbox was full."""
    stalled_total: int
    """Connections aborted because nothing could be written to them."""
    late_events_total: int
    """Job events clients were not told of, because the job had ended or they knew."""
    jobs_expired_total: int
    jobs_evicted_total: int
    """Jobs let go of before they ended, because there were too many."""
    history_trimmed_total: int
    resync_required_total: int
    """Peers told that what they asked to continue could not be continued."""
    undelivered_total: int
    """Outcomes given to `on_undelivered`."""
    poisoned_total: int
    """Payloads from the backplane that could not be decoded, and were dropped."""
