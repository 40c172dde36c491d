"""What the nodes know of peers together: whose an id is, what a client follows and has taken.

Commands and what their answers say. These are keys and not entries of the stream: a hundred
thousand clients that reconnect at once would otherwise push the events out of it.
"""

from __future__ import annotations

from typing import Any

from jobqueue_broadcast.backplane import Claim
from jobqueue_broadcast.backplane.redis.entries import Command, Keys

__all__ = ["claim", "claimed", "hold", "keep", "release", "report", "took"]

# A connection says that it is still there once a minute; three times unheard, it is gone.
_TTL = 180

# Each script is one step for the server, so of two that ask at once one is told of the other.
# A number is the time in µs, so that it also grows over a flush; a double holds it until 2255.
_CLAIM = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then return {owner, 0, 0, 0, {}} end
local previous = tonumber(redis.call('HGET', KEYS[1], 'number') or 0)
local now = redis.call('TIME')
local number = math.max(previous + 1, now[1] * 1000000 + now[2])
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'number', string.format('%.0f', number))
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return {ARGV[1], owner and 1 or 0, number, previous, redis.call('HGETALL', KEYS[2])}
"""
_HOLD = """
local number = redis.call('HGET', KEYS[1], 'number')
if number and number ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'number', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
"""
_RELEASE = """
if redis.call('HGET', KEYS[1], 'number') ~= ARGV[1] then return 0 end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
"""


def claim(keys: Keys, kind: str, peer_id: str, owner: str) -> Command:
    """Return the command that asks for an id."""
    return ("EVAL", _CLAIM, 2, *_keys(keys, kind, peer_id), owner, _TTL)


def claimed(answer: Any) -> Claim:
    """Return what the answer to `claim` says."""
    owner, known, number, previous, flat = answer
    jobs: dict[str, tuple[int, int]] = {}
    for job_id, since in zip(flat[::2], flat[1::2], strict=True):
        sequence, _, state = since.partition(b".")
        jobs[job_id.decode()] = (int(sequence), int(state))
    return Claim(
        owner=owner.decode(), number=number, known=known == 1, previous=previous, jobs=jobs
    )


def hold(keys: Keys, kind: str, peer_id: str, owner: str, number: int) -> Command:
    """Return the command that says a connection is still there."""
    return ("EVAL", _HOLD, 2, *_keys(keys, kind, peer_id), owner, number, _TTL)


def release(keys: Keys, kind: str, peer_id: str, number: int, retention: float) -> Command:
    """Return the command that gives up an id; 0 seconds of retention forget it at once."""
    return ("EVAL", _RELEASE, 2, *_keys(keys, kind, peer_id), number, round(retention))


def keep(keys: Keys, client_id: str, job_id: str, since: tuple[int, int] | None) -> list[Command]:
    """Return the commands that remember, or forget, a subscription."""
    jobs = _keys(keys, "client", client_id)[1]
    if since is None:
        return [("HDEL", jobs, job_id)]
    return [("HSET", jobs, job_id, f"{since[0]}.{since[1]}"), ("EXPIRE", jobs, _TTL)]


def took(keys: Keys, sequence: int, seconds: float) -> Command:
    """Return the command that says that a client took an outcome."""
    return ("SET", keys.outcome(sequence), "taken", "PX", round(seconds * 1000))


def report(keys: Keys, sequence: int, seconds: float) -> Command:
    """Return the command that is answered `None` if an outcome was taken, or reported before."""
    return ("SET", keys.outcome(sequence), "reported", "PX", round(seconds * 1000), "NX")


def _keys(keys: Keys, kind: str, peer_id: str) -> tuple[str, str]:
    return f"{keys.prefix}:{kind}:{peer_id}", f"{keys.prefix}:{kind}:{peer_id}:jobs"
