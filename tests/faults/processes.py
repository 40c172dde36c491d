"""Server processes that tests start, drive and kill."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from jobqueue_broadcast import Event
from jobqueue_broadcast.events import encode

_PROGRAM = Path(__file__).with_name("server_process.py")


class ServerProcess:
    """One run of `server_process.py`."""

    def __init__(self, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._read())

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def broadcast(self, events: Iterable[Event]) -> int:
        """Broadcast events; return how many the process has broadcast so far."""
        return self._tell(broadcast=events)

    def restore(self, events: Iterable[Event]) -> None:
        """Fold events into the process's states."""
        self._tell(restore=events)

    def kill(self) -> None:
        """End the process with SIGKILL."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _tell(self, **asked: Iterable[Event]) -> int:
        line: dict[str, Any] = {
            name: [msgspec.json.decode(encode(event)) for event in events]
            for name, events in asked.items()
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        return int(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server process ended"
        return line
