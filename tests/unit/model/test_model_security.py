"""How much a unit is exposed: the table behind ``check --security``."""

import pytest
from msgspec.structs import replace

from supervisord_py.model.sandbox import SANDBOX_KEYS, Access, Families, Sandbox
from supervisord_py.model.sandbox_mechanisms import MECHANISMS, applied
from supervisord_py.model.security import ASPECTS, assess
from supervisord_py.model.system_calls import parse_call_filter
from supervisord_py.model.unit import Command, ExecContext, Service, Unit, UnitKind

CALLS, _ = parse_call_filter(["@system-service", "~@privileged @resources"])
TIGHT = Sandbox(
    no_new_privileges=True, protect_system="strict", protect_home="yes", private_tmp=True, private_devices=True,
    private_network=True, private_users=True, protect_kernel_tunables=True, protect_kernel_modules=True,
    protect_kernel_logs=True, protect_control_groups=True, protect_clock=True, protect_hostname=True,
    protect_proc="invisible", restrict_namespaces=0x7E020080, restrict_realtime=True, restrict_suid_sgid=True,
    lock_personality=True, memory_deny_write_execute=True, system_call_architectures=(),
    restrict_address_families=Families(True, (1, 2, 10)), capability_bounding_set=0, system_call_filter=CALLS,
)  # fmt: skip


def unit(sandbox: Sandbox, user: str | None = None) -> Unit:
    service = Service(exec_start=(Command(("/bin/true",)),), context=ExecContext(user=user, sandbox=sandbox))
    return Unit("a", UnitKind.SERVICE, service)


def test_from_open_to_tight() -> None:
    """A unit of root without a sandbox is at 10; one that does all that is told to it is at 0."""
    bare = assess(unit(Sandbox()), is_user=False)
    assert bare is not None
    assert (bare.exposure, bare.word, len(bare.open)) == (10.0, "open", len(ASPECTS))
    assert bare.open[0].key == "user"
    best = assess(unit(TIGHT, "nobody"), is_user=False)
    assert best is not None
    assert (best.exposure, best.word, best.open) == (0.0, "tight", ())
    assert assess(Unit("t", UnitKind.TARGET), is_user=False) is None


@pytest.mark.parametrize("aspect", ASPECTS, ids=lambda aspect: f"{aspect.key} {aspect.sentence[:20]}")
def test_each_aspect_counts(aspect: object) -> None:
    """Each is open without a sandbox and closed by a tight one; so none is counted that cannot be closed."""
    assert aspect in ASPECTS
    found = ASPECTS[ASPECTS.index(aspect)]  # type: ignore[arg-type]
    assert not found.is_closed(ExecContext())
    assert found.is_closed(ExecContext(user="nobody", sandbox=TIGHT))


def test_tightening_lowers_the_number() -> None:
    """Less is open with every key that is added, and an ordinary user's supervisor has less to lose."""
    numbers = [10.0]
    for field in ("no_new_privileges", "protect_home", "system_call_filter", "capability_bounding_set"):
        found = assess(unit(replace(Sandbox(), **{field: getattr(TIGHT, field)})), is_user=False)
        assert found is not None
        assert found.exposure < 10.0
        numbers.append(found.exposure)
    landlocked = assess(unit(Sandbox(landlock=(Access("/usr", "rx"),))), is_user=True)
    assert landlocked is not None
    assert {"protect-system", "protect-home", "user", "capabilities"}.isdisjoint(each.key for each in landlocked.open)


def test_every_key_has_its_mechanism() -> None:
    """What a key is enforced by is said of each, and of what a process does without it is not."""
    assert set(SANDBOX_KEYS) - set(MECHANISMS) == {"enforce", "system-call-error-number"}
    found = applied(TIGHT, ("private-tmp: no room",), implies_privileges=True, implies_namespace=False, abi=0)
    assert "private-network: network namespace" in found
    assert not any(line.startswith("private-tmp") for line in found)
    implied = applied(Sandbox(landlock=(Access("/", "r"),)), (), implies_privileges=True, implies_namespace=True, abi=7)
    assert implied == [
        "landlock: Landlock ABI 7", "no-new-privileges: prctl (implied)", "private-users: user namespace (implied)",
    ]  # fmt: skip
