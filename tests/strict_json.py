"""A parser that accepts what the standard (RFC 8259) does, and nothing that only most accept."""

import json
from typing import Any, NoReturn


def parse(payload: bytes) -> dict[str, Any]:
    """Read a frame: one JSON object, in UTF-8, without a key twice, NaN or Infinity."""
    frame = json.loads(
        payload.decode("utf-8", "strict"), parse_constant=_refuse, object_pairs_hook=_unique
    )
    assert isinstance(frame, dict)
    assert isinstance(frame["type"], str)
    assert type(frame["timestamp"]) is int
    return frame


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    assert len(found) == len(pairs), "a key stands twice"
    return found
