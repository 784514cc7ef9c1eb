"""Log lines on stderr: plain text, or one JSON object each."""

from __future__ import annotations

import json
import logging
import sys
from typing import Literal


def configure(form: Literal["text", "json"], level: str) -> None:
    """Only this package's lines: botocore's debug output would carry signatures."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("tandem_fetch")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(line, ensure_ascii=False)
