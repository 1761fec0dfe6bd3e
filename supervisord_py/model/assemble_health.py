"""``[health.NAME]`` of one unit."""

from typing import Any

from supervisord_py.model.fields import Fields
from supervisord_py.model.names import parse_group_name
from supervisord_py.model.parse import TableId
from supervisord_py.model.problems import Problem
from supervisord_py.model.states import ProbeAction, ProbeKind, ServiceType
from supervisord_py.model.unit import Probe, Service

_PROBE = Probe("", ProbeKind.LIVENESS)


def assemble_health(fields: Fields, service: Service, problems: list[Problem]) -> tuple[Probe, ...]:
    """``[health.NAME]``, by name."""
    probes = [_probe(fields, place, problems) for place in fields.below("health")]
    if probes and service.type is ServiceType.ONESHOT:
        place = fields.below("health")[0]
        hint = "take it out: whether its command ends well is all there is to a oneshot"
        problems.append(
            fields.problem(place, "", "a oneshot is over when it is up, so it is never checked", hint, warning=True)
        )
    return tuple(probe for probe in probes if probe is not None)


_CHECKS = ("exec", "http", "tcp", "unix", "file", "log")


def _probe(fields: Fields, place: TableId, problems: list[Problem]) -> Probe | None:
    """One check; None when it is none."""

    def complain(key: str, message: str, hint: str = "", *, warning: bool = False) -> None:
        problems.append(fields.problem(place, key, message, hint, warning=warning))

    name = str(place[-1])
    try:
        parse_group_name(name)
    except ValueError:
        complain("", f"{name!r} is not the name of a check", "letters, digits and : _ . -, a letter or digit first")
        return None
    written = [key for key in _CHECKS if fields.decoded(place, key) is not None]
    if len(written) != 1:
        message = f"one check too many: {' and '.join(written)}" if written else "a check that looks at nothing"
        complain(written[-1] if written else "", message, f"write one of {', '.join(_CHECKS)}")
    kind: str | None = fields.get(place, "kind", None)
    if kind is None:
        hint = 'write kind = "readiness", "liveness" or "startup"'
        complain("", "a check without the key 'kind'", hint)
    if kind is None or len(written) != 1:
        return None
    is_readiness = kind == ProbeKind.READINESS.value
    default = ProbeAction.NONE if is_readiness else _PROBE.action
    action = ProbeAction(fields.get(place, "action", default.value))
    if is_readiness and action is not ProbeAction.NONE:
        complain(
            "action",
            "a readiness check says whether the unit can be used, and does nothing",
            'write kind = "liveness", or take it out',
        )
    successes = fields.get(place, "success-threshold", _PROBE.success_threshold)
    if not is_readiness and successes != 1:
        complain("success-threshold", f"of a {kind} check one success is enough", "take it out", warning=True)
    checked: dict[str, Any] = {key: fields.get(place, key, None) for key in written}
    if str(checked.get("http", "")).lower().startswith("https:"):
        message = "no certificate is verified: the check only asks whether the service answers"
        problems.append(fields.problem(place, "http", message, "an exec check can do more", info=True))
    return Probe(
        name,
        ProbeKind(kind),
        interval_ns=fields.get(place, "interval", _PROBE.interval_ns),
        timeout_ns=fields.get(place, "timeout", _PROBE.timeout_ns),
        initial_delay_ns=fields.get(place, "initial-delay", _PROBE.initial_delay_ns),
        failure_threshold=fields.get(place, "failure-threshold", _PROBE.failure_threshold),
        success_threshold=successes if is_readiness else 1,
        action=action,
        **checked,
    )
