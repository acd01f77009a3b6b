"""The process's log: JSON lines in ``node.log``.

A line holds a fixed sentence, facts that the code chose, and for an exception its type and where it was raised. The
message of a foreign exception is left out: it may repeat a value out of a patient's file.
"""

import json
import logging
import traceback
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from vht_federate.errors import VhtError

__all__ = ["JsonLines", "open_log"]


class JsonLines(logging.Formatter):
    """``{time, level, logger, message, …facts, error?}``. Only our own loggers' sentences are repeated."""

    def format(self, record: logging.LogRecord) -> str:
        ours = record.name.startswith("vht.")
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": str(record.msg) if ours else f"a message of {record.name}",
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _described(record.exc_info[1])
        return json.dumps(line, default=str)


def _described(error: BaseException) -> dict[str, object]:
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-6:]]
    details = {"code": error.code, "message": error.message} if isinstance(error, VhtError) else {}
    return {"type": type(error).__name__, "at": places, **details}


def open_log(path: Path) -> logging.Handler:
    """Send this process's log to ``path``, 10 MB and five older files at most. The caller closes the handler."""
    handler = RotatingFileHandler(path, maxBytes=10_000_000, backupCount=5)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("vht").setLevel(logging.INFO)
    return handler
