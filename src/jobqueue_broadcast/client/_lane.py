"""Commands under way: each sent on every connection anew until it is answered.

A lane has a width: how many of its commands may be unanswered at once. The others wait, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import anyio

from jobqueue_broadcast.errors import CommandFailed, ConnectionEnded, ConnectRefused

__all__ = ["Answered", "Lane", "raised_again"]

Answered: TypeAlias = Callable[[Any], None]
"""Takes the answer to a command: what the server said, or the exception to raise."""


class _Command:
    """One command; `message_id` ties its answer to it."""

    __slots__ = ("answered", "message_id", "payload", "sent")

    def __init__(self, message_id: str, payload: bytes, answered: Answered) -> None:
        self.message_id = message_id
        self.payload = payload
        self.answered = answered
        self.sent = False


class Lane:
    """Commands of one kind, in order.

    Args:
        width: How many may be unanswered at once.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._send: Callable[[bytes], None] | None = None
        self._held = False
        self._commands: dict[str, _Command] = {}
        self._unsent: deque[_Command] = deque()
        self._under_way: dict[str, _Command] = {}

    def __len__(self) -> int:
        return len(self._commands)

    @property
    def under_way(self) -> bool:
        """Whether an answer may come: a command was sent on this connection."""
        return bool(self._under_way)

    async def ask(
        self, message_id: str, payload: bytes, then: Callable[[], None] | None = None
    ) -> Any:
        """Send a command and return the answer; `then` is called when it was carried out.

        When the caller is cancelled, a command that was not sent yet is withdrawn; of one that
        was, the answer is still awaited, so that it is not taken for another's.

        Raises:
            PeerError: The server refused the command, or the peer came to its end.
        """
        done = anyio.Event()
        answers: list[Any] = []

        def answered(answer: Any) -> None:
            answers.append(answer)
            if then is not None and not isinstance(answer, Exception):
                then()
            done.set()

        self.post(message_id, payload, answered)
        try:
            await done.wait()
        finally:
            if not answers and not self._commands[message_id].sent:
                self.withdraw(message_id)
        if isinstance(answers[0], Exception):
            raise raised_again(answers[0])
        return answers[0]

    def post(
        self, message_id: str, payload: bytes, answered: Answered, *, first: bool = False
    ) -> None:
        """Send a command, after or before those that wait; `answered` is called with its answer."""
        command = _Command(message_id, payload, answered)
        if first:
            self._commands = {message_id: command, **self._commands}
            self._unsent.appendleft(command)
        else:
            self._commands[message_id] = command
            self._unsent.append(command)
        self._pump()

    def withdraw(self, message_id: str | None) -> None:
        """Forget a command, if it is there."""
        if message_id is not None:
            self._commands.pop(message_id, None)
            self._under_way.pop(message_id, None)

    def answer(self, message_id: str, answer: Any) -> bool:
        """Hand in an answer; return whether it was to a command of this lane."""
        command = self._commands.pop(message_id, None)
        if command is None:
            return False
        self._under_way.pop(message_id, None)
        command.answered(answer)
        self._pump()
        return True

    def answer_oldest(self, answer: Any) -> bool:
        """Hand in an answer that names no command: it is to the one that was sent first."""
        message_id = next(iter(self._under_way), None)
        return message_id is not None and self.answer(message_id, answer)

    def connect(self, send: Callable[[bytes], None]) -> None:
        """Go on over a new connection: what was not answered is sent again."""
        self._send = send
        self.release()

    def disconnect(self) -> None:
        """Keep everything for the next connection."""
        self._send = None
        self.hold()

    def hold(self) -> None:
        """Send nothing for now; all that is unanswered will be sent again."""
        self._held = True
        self._under_way.clear()
        self._unsent = deque(self._commands.values())

    def release(self) -> None:
        """Send again."""
        self._held = False
        self._pump()

    def fail(self, error: Exception) -> None:
        """Answer everything with an error: there will be no other connection."""
        self.disconnect()
        commands, self._commands = self._commands, {}
        self._unsent.clear()
        for command in commands.values():
            command.answered(error)

    def _pump(self) -> None:
        while self._send and not self._held and self._unsent and len(self._under_way) < self._width:
            command = self._unsent.popleft()
            # One that was withdrawn or answered meanwhile is not in the table any more.
            if self._commands.get(command.message_id) is command:
                self._under_way[command.message_id] = command
                command.sent = True
                self._send(command.payload)


def raised_again(error: Exception) -> Exception:
    """Return an equal exception: one raised in several tasks would gather all their tracebacks."""
    match error:
        case ConnectionEnded():
            return ConnectionEnded(error.code, error.reason)
        case ConnectRefused():
            return ConnectRefused(error.status, error.reason)
        case CommandFailed():
            return CommandFailed(error.code, error.error)
        case _:
            return error
