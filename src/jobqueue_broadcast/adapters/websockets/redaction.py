"""Keeping credentials out of logs: `websockets` writes whole requests to its logger at DEBUG."""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any

from websockets.typing import LoggerLike

__all__ = ["RedactCredentials", "redact", "redacted_logger", "redacted_traceback"]

# Not only `token=`: a name may be percent-encoded, and a proxy or host may have names of its own.
_QUERY = re.compile(r"\?\S+")

# A host's `authenticate` may read any header, so these alone are written as they are.
_HARMLESS = frozenset({
    "accept", "accept-encoding", "accept-language", "allow", "cache-control", "connection",
    "content-length", "content-security-policy", "content-type", "date", "host", "origin",
    "pragma", "referrer-policy", "retry-after", "sec-websocket-accept",
    "sec-websocket-extensions", "sec-websocket-version", "server", "upgrade", "user-agent",
    "www-authenticate", "x-content-type-options", "x-forwarded-for",
})  # fmt: skip

_HEADER = re.compile(r"[<>] %s: %s")


class RedactCredentials(logging.Filter):
    """Takes queries, the values of most headers, and what could not be parsed out of records."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; every record passes."""
        arguments = record.args
        if isinstance(arguments, tuple) and arguments:
            if _HEADER.fullmatch(str(record.msg)) and len(arguments) == 2:
                record.args = _header(*arguments)
            else:
                record.args = tuple(map(_without_query, arguments))
        quotes = record.levelno <= logging.DEBUG or record.msg == "opening handshake failed"
        if quotes and record.exc_info:
            # Of a request that could not be parsed, `websockets` quotes the line.
            kind = record.exc_info[0]
            record.msg = f"{record.msg} ({kind.__name__ if kind else 'no exception'})"
            record.exc_info = None
        return True


def redact(logger: LoggerLike) -> None:
    """Let a logger write no credentials."""
    while isinstance(logger, logging.LoggerAdapter):
        logger = logger.logger
    if not any(isinstance(each, RedactCredentials) for each in logger.filters):
        logger.addFilter(RedactCredentials())


def redacted_logger(name: str = "jobqueue_broadcast.websockets") -> logging.Logger:
    """Return a logger to give to `websockets`, which writes no credentials."""
    logger = logging.getLogger(name)
    redact(logger)
    return logger


def redacted_traceback(error: BaseException, credential: str | None) -> str:
    """Return the traceback of a host's hook without the credential the hook was given.

    `TOKENS[handshake.credential]` would put it into the message of a `KeyError`.
    """
    text = "".join(traceback.format_exception(error))
    for shown in {credential or "", repr(credential)[1:-1]} if credential else ():
        text = text.replace(shown, "[redacted]")
    return text


def _header(name: Any, value: Any) -> tuple[Any, Any]:
    return (name, value if str(name).lower() in _HARMLESS else "[redacted]")


def _without_query(argument: Any) -> Any:
    return _QUERY.sub("?[redacted]", argument) if isinstance(argument, str) else argument
