"""Questions only the host can answer: its hooks, and the `Ask` that carries a call to one.

The core awaits nothing. What a hook must decide goes to the adapter as an `Ask`; the adapter makes
the call, awaits it where needed, and hands in the answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from msgspec import Struct

from jobqueue_broadcast.auth import Authorize, Principal
from jobqueue_broadcast.commands import SubmitJob

__all__ = ["Ask", "Cancel", "Hooks", "Submit", "chain"]

Submit: TypeAlias = Callable[[SubmitJob, Principal], str | Awaitable[str]]
"""Create the job a client submitted; return its id. May raise `HookRefusal`."""

Cancel: TypeAlias = Callable[[str, Principal], object]
"""Cancel a job. May be async, and may raise `HookRefusal`."""


class Hooks(Struct, frozen=True, kw_only=True):
    """What a host decides; a command whose hook is missing is answered `unsupported`."""

    authorize: Authorize | None = None
    submit: Submit | None = None
    cancel: Cancel | None = None


class Ask:
    """A question only the host can answer.

    The adapter calls `call`, awaits what it returns if that is awaitable, and then calls
    `answered` with the result or `failed` with the exception; each may return another `Ask`.
    """

    __slots__ = ("_answered", "_failed", "call")

    def __init__(
        self,
        call: Callable[[], Any],
        answered: Callable[[Any], Ask | None],
        failed: Callable[[Exception], Ask | None],
    ) -> None:
        self.call = call
        self._answered = answered
        self._failed = failed

    def answered(self, result: Any) -> Ask | None:
        """Go on with the host's answer."""
        return self._answered(result)

    def failed(self, error: Exception) -> Ask | None:
        """Go on after the host's hook raised."""
        return self._failed(error)


def chain(ask: Ask, then: Callable[[], Ask | None]) -> Ask:
    """Do one question, whatever further ones it leads to, and then another thing."""

    def after(following: Ask | None) -> Ask | None:
        return then() if following is None else chain(following, then)

    return Ask(
        ask.call,
        lambda result: after(ask.answered(result)),
        lambda error: after(ask.failed(error)),
    )
