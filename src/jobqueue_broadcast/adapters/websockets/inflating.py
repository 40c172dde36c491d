"""Compressed frames from peers: a bomb is found before anything is kept of it."""

from __future__ import annotations

import contextlib
import zlib
from typing import Any

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

__all__ = ["GuardedDeflate"]

_BEGINS = (Opcode.TEXT, Opcode.BINARY)
_READ = 2048
_INFLATED = 16 * 1024
_TAIL = 16


class GuardedDeflate(PerMessageDeflate):
    """Permessage-deflate that inflates each message twice, the first time only to see its size.

    `websockets` alone refuses a bomb too, but has zlib make `max_size` bytes first, join them to a
    second copy, and keep the rest of the frame: for a bomb of 1 KiB it takes 2.5 × `max_size`, and
    here 0.5. That costs 5 µs for a command of 300 bytes.

    What follows the end of a deflate stream inflates to nothing, which `websockets` finds small
    enough in every fragment, while zlib keeps all of it. Here that is a protocol error.
    """

    _first: Any = None

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        """Inflate a frame, or raise `PayloadTooBig`: for `websockets`."""
        if frame.opcode in _BEGINS:
            bits = -self.remote_max_window_bits
            self._first = zlib.decompressobj(bits) if frame.rsv1 else None
        if self._first is not None and (frame.opcode in _BEGINS or frame.opcode is Opcode.CONT):
            if max_size is not None:
                # What is no deflate stream is left to `websockets` to refuse.
                with contextlib.suppress(zlib.error):
                    _measure(self._first, memoryview(frame.data), max_size)
            if frame.fin:
                self._first = None
        return super().decode(frame, max_size=max_size)


def _measure(inflater: Any, data: memoryview, max_size: int) -> None:
    size = at = 0
    while at < len(data) and not inflater.eof:
        rest: Any = data[at : at + _READ]
        at += len(rest)
        made = 0
        # As long as there is more to read, or to say of what was read.
        while (rest or made == _INFLATED) and not inflater.eof:
            made = len(inflater.decompress(rest, _INFLATED))
            rest = inflater.unconsumed_tail
            size += made
            if size > max_size:
                raise PayloadTooBig(None, max_size)
    # RFC 7692, section 7.2.3.4, adds one byte to a stream that has an end.
    if inflater.eof and len(inflater.unused_data) + len(data) - at > _TAIL:
        raise ProtocolError("data after the end of the deflate stream")
