"""The invariants of a running supervisor, checked from outside and through its control socket.

One look takes a few milliseconds, and all is well as a rule. When something is not, it is looked at again and again for
``SETTLE_S``: what is in every look is a finding, what vanishes was on its way (a process that has just died, of which
the manager has not heard yet).
"""

import time

from supervisord_py.ctl.client import Client, ControlError
from supervisord_py.doctor.belongings import belongings
from supervisord_py.doctor.evidence import Evidence, look
from supervisord_py.doctor.findings import Finding, degraded, ok, wrong
from supervisord_py.doctor.invariants import broken, counts, who_can_signal_whom

SETTLE_S = 3.0
SLOW_S = 5.0
"""An answer takes milliseconds, and a hundredth of this on a machine that has no time."""
PAUSE_S = 0.05
PAUSE_MAX_S = 0.8


def examine(client: Client, *, settle_s: float = SETTLE_S) -> list[Finding]:
    """Check every invariant.

    Args:
        client: Of the supervisor that is meant.
        settle_s: How long something must go on to be a finding [s].

    Raises:
        SupervisordError: The supervisor does not answer, or not to us.
    """
    asked_s = time.monotonic()
    client.call("Version")
    answered_s = time.monotonic() - asked_s
    evidence, found = _settled(client, settle_s)
    instance = evidence.instance
    who = f"{instance.name}: keeper {instance.keeper}, manager {instance.manager}"
    findings = [ok("instance", ", ".join([who, *(f"{count} {what}" for what, count in counts(evidence).items())]))]
    if answered_s > SLOW_S:
        fact = f"it took {answered_s:.0f} s to answer: the manager was stopped, replaced or very busy"
        cure = "supctl journal query -e manager.restarted, and what takes the processor's time"
        findings.append(degraded("instance", fact, cure))
    if evidence.is_book_missing:
        fact = "the keeper's book is missing: should it be killed, its processes are ended at the next start"
        findings.append(
            wrong("book", fact, f"make room in {instance.runtime} if it is full; supctl daemon-reexec writes another")
        )
    elif evidence.book is None:
        fact = "its runtime folder is not ours to read: processes are told by parent and cgroup alone"
        findings.append(degraded("instance", fact, "ask as its user, or as root"))
    findings += found.values()
    findings += belongings(instance)
    findings += _journal(client)
    findings += who_can_signal_whom(evidence)
    return findings


def _settled(client: Client, settle_s: float) -> tuple[Evidence, dict[str, Finding]]:
    """Look until nothing is broken, or for so long; returns what was broken all the time."""
    evidence = look(client)
    found = broken(evidence)
    end_s, pause_s = time.monotonic() + settle_s, PAUSE_S
    while found and time.monotonic() < end_s:
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_MAX_S)
        evidence = look(client)
        again = broken(evidence)
        found = {key: again[key] for key in found if key in again}
    return evidence, found


def _journal(client: Client) -> list[Finding]:
    """Check the chain of what is kept, and that no number is missing in it."""
    try:
        verified = client.call("Journal.Verify")
        stats = client.call("Journal.Stats")
    except ControlError as error:
        return [degraded("journal", f"not looked at: {error}", "ask as the supervisor's user, or as root")]
    first, last, records = verified["first_seq"], verified["last_seq"], verified["records"]
    if not verified["ok"]:
        where = f"{verified['file'] or '?'}, record {verified['bad_seq']}"
        fact = f"the chain is broken at {where}: {verified['problem']}"
        return [wrong("journal", fact, "supctl journal verify; what is before it can be trusted")]
    if first is not None and last is not None and records != last - first + 1:
        fact = f"{records} records from {first} to {last}: numbers are missing"
        return [wrong("journal", fact, "supctl journal verify, and see what removed a segment")]
    if stats["degraded"]:
        return [degraded("journal", stats["degraded"], "make room or mend the disk; supervision goes on")]
    return [ok("journal", f"{records} records, the chain holds")]
