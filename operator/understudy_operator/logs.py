"""One JSON object a line with the same keys everywhere, kopf's lines included, or plain lines where a person reads.

What a line is about travels in `extra=`: namespace, policy, reason, decision_id. The tick adds itself.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.orjson import OrjsonFormatter

tick_id: ContextVar[int | None] = ContextVar("tick_id", default=None)
"""The tick that is under way in this task; set by the control loop."""

KEYS = ("tick_id", "namespace", "policy", "reason", "decision_id")
"""What a line may be about, in the order in which it is shown."""


class _Subject(logging.Filter):
    """Gives every record the same keys: None where a line is not about such a thing."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.ts = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        # kopf says in `k8s_ref` which object a line is about.
        about = getattr(record, "k8s_ref", None) or {}
        known = {"tick_id": tick_id.get(), "namespace": about.get("namespace"), "policy": about.get("name")}
        for key in KEYS:
            if not hasattr(record, key):
                setattr(record, key, known.get(key))
        return True


class _Plain(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's own name)
        about = [f"{key}={value}" for key in KEYS if (value := getattr(record, key, None)) is not None]
        return "  ".join([super().formatMessage(record), *about])


def configure(level: str = "INFO", *, as_json: bool | None = None, stream: TextIO | None = None) -> None:
    """Send all logging to one stream; call once, before anything logs.

    Args:
        level: least level of our own lines; kopf and the libraries say only what is at least a warning.
        as_json: JSON lines; by default unless the stream is a terminal.
        stream: standard error by default.

    Raises:
        ValueError: the level is unknown.
    """
    names = logging.getLevelNamesMapping()
    if level.upper() not in names:
        raise ValueError(f"log level is {level!r}: use one of DEBUG, INFO, WARNING, ERROR")
    out = stream or sys.stderr
    handler = logging.StreamHandler(out)
    handler.addFilter(_Subject())
    handler.setFormatter(_json() if as_json or (as_json is None and not out.isatty()) else _Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for ours in ("understudy_operator", "understudy_policy"):
        logging.getLogger(ours).setLevel(level.upper())


def _json() -> logging.Formatter:
    return OrjsonFormatter(
        ["ts", "levelname", "name", "message", *KEYS],
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        reserved_attrs=[*RESERVED_ATTRS, "k8s_skip", "k8s_ref", "settings"],
    )
