"""Who began or ended a life, and why, in words: for ``why``, and for the record of a stop."""

from supervisord_py.core.events import Origin
from supervisord_py.core.state import Job, Order


def who(origin: Origin) -> str:
    """Name who asked: ``root (uid 0)``, ``unit planner``, ``key alice (192.0.2.7:4010)``; empty: not known."""
    if origin.remote:
        return origin.remote
    if origin.unit is not None:
        return f"unit {origin.unit}"
    if origin.user:
        return f"{origin.user} (uid {origin.uid})"
    return f"uid {origin.uid}" if origin.pid else ""


def describe(order: Order) -> str:
    """Say what an order was: ``stopped by root (uid 0): maintenance``."""
    by = _noted(order.by, order.note)
    if order.reason:
        return f"{order.verb} because {order.reason}" + (f" ({by})" if by else "")
    if order.by:
        return f"{order.verb} by {by}"
    return f"{order.verb}: {order.note}" if order.note else order.verb


def stop_reason(job: Job, verb: str) -> str:
    """Say why a job stops its unit, as ``unit.stopping`` tells it: ``stopped by root (uid 0): maintenance``."""
    by = _noted(job.by, job.note)
    if job.reason:
        return f"{job.reason} ({by})" if by else job.reason
    if job.by:
        return f"{verb} by {by}"
    asked = "a restart was asked for" if verb == "restarted" else "a stop was asked for"
    return f"{asked}: {job.note}" if job.note else asked


def _noted(by: str, note: str) -> str:
    return f"{by}: {note}" if by and note else by or note
