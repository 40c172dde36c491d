"""Keeping credentials out of logs: `websockets` writes whole requests to its logger at DEBUG."""

from __future__ import annotations

import logging
import re

__all__ = ["RedactCredentials", "redacted_logger"]

_QUERY_TOKEN = re.compile(r"([?&]token=)[^&\s\"']*", re.IGNORECASE)
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "sec-websocket-protocol"})


class RedactCredentials(logging.Filter):
    """Replaces tokens in request targets and the values of headers that carry credentials."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record's arguments; every record passes."""
        arguments = record.args
        if isinstance(arguments, tuple) and arguments:
            if str(arguments[0]).lower() in _SECRET_HEADERS:
                record.args = (arguments[0], *("[redacted]" for _ in arguments[1:]))
            else:
                record.args = tuple(
                    _QUERY_TOKEN.sub(r"\1[redacted]", argument)
                    if isinstance(argument, str)
                    else argument
                    for argument in arguments
                )
        return True


def redacted_logger(name: str = "jobqueue_broadcast.websockets") -> logging.Logger:
    """Return a logger to give to `websockets`, which writes no credentials."""
    logger = logging.getLogger(name)
    if not any(isinstance(each, RedactCredentials) for each in logger.filters):
        logger.addFilter(RedactCredentials())
    return logger
