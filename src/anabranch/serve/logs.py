"""Logs as lines of JSON, without a word of what was asked or answered."""

from __future__ import annotations

import json
import logging
import logging.config
import time
import traceback
from typing import Any

from anabranch.serve.calls import Call

log = logging.getLogger("anabranch.requests")

MOST_PATH = 200


class JsonLines(logging.Formatter):
    """One object per record: time, level, logger, message, and what `fields` names.

    Of an exception it tells types and places; its message may hold what a client has sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            kind, _, frames = record.exc_info
            told["error"] = kind.__name__
            told["at"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(frames)
            ]
        return json.dumps(told, default=str)


def set_up(level: str) -> None:
    """Send all of this process's logs to stderr."""
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {name: {"level": level.upper()} for name in ("anabranch", "uvicorn")},
    }
    logging.config.dictConfig(config)


def log_call(call: Call) -> None:
    """The line of a request. Checks of health are told to who debugs only."""
    level = logging.DEBUG if call.route == "/health" and call.status == 200 else logging.INFO
    fields = {
        "request_id": call.id,
        "key": call.account.name,
        "method": call.method,
        "route": call.route[:MOST_PATH],
        "status": call.status,
        "finish": call.outcome,
        "model": call.model,
        "strategy": call.strategy,
        "prompt_tokens": call.prompt_tokens,
        "tokens": call.tokens,
        "seconds": round(call.seconds, 6),
        "first_seconds": call.first and round(call.first, 6),
    }
    log.log(level, "request", extra={"fields": fields})
