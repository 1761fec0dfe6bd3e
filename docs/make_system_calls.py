"""Writes ``supervisord_py/model/system_call_data.py``: numbers and groups of system calls.

``python docs/make_system_calls.py`` needs a machine of the kind x86-64 with gcc, the kernel's headers (Debian:
linux-libc-dev) and systemd-analyze. Numbers are those of the headers: ``asm/unistd_64.h``, ``asm/unistd_32.h``, and
for aarch64 ``asm-generic/unistd.h`` with the choices of ``arch/arm64/include/uapi/asm/unistd.h``. Calls from 424 on
have one number everywhere, so newer ones than the headers know are listed here. Groups are what
``systemd-analyze syscall-filter`` prints, with the newer calls put where calls of their kind are.
"""

import re
import subprocess
from pathlib import Path
from textwrap import wrap

TARGET = Path(__file__).resolve().parent.parent / "supervisord_py" / "model" / "system_call_data.py"
ARM64 = ("RENAMEAT", "NEW_STAT", "SET_GET_RLIMIT", "TIME32_SYSCALLS", "SYS_CLONE3", "MEMFD_SECRET")
_ARM64_FLAGS = ("-D__BITS_PER_LONG=64", *(f"-D__ARCH_WANT_{one}" for one in ARM64))
HEADERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "x86-64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", ()),
    "x86": ("/usr/include/x86_64-linux-gnu/asm/unistd_32.h", ()),
    "arm64": ("/usr/include/asm-generic/unistd.h", _ARM64_FLAGS),
}
NO_CALLS = ("__NR_syscalls", "__NR_arch_specific_syscall")
NEWER = {
    "cachestat": (451, "@file-system"), "fchmodat2": (452, "@file-system"), "map_shadow_stack": (453, "@default"),
    "futex_wake": (454, "@default"), "futex_wait": (455, "@default"), "futex_requeue": (456, "@default"),
    "statmount": (457, "@file-system"), "listmount": (458, "@file-system"), "lsm_get_self_attr": (459, "@process"),
    "lsm_set_self_attr": (460, "@process"), "lsm_list_modules": (461, "@process"), "mseal": (462, "@default"),
    "setxattrat": (463, "@file-system"), "getxattrat": (464, "@file-system"), "listxattrat": (465, "@file-system"),
    "removexattrat": (466, "@file-system"), "open_tree_attr": (467, "@mount"), "file_getattr": (468, "@file-system"),
    "file_setattr": (469, "@file-system"),
}  # fmt: skip
"""Linux 6.5 to 6.17."""


def read_numbers(path: str, flags: tuple[str, ...]) -> dict[str, int]:
    """Return the numbers that a header defines."""
    text = subprocess.run(["gcc", "-E", "-dM", *flags, path], capture_output=True, text=True, check=True).stdout
    defined = dict(re.findall(r"#define (__NR\w*) (\S+)", text))
    numbers = {}
    for name, value in defined.items():
        while value in defined:
            value = defined[value]
        if name.startswith("__NR_") and value.isdecimal() and name not in NO_CALLS:
            numbers[name.removeprefix("__NR_")] = int(value)
    return numbers


def read_groups() -> dict[str, list[str]]:
    """Return systemd's groups."""
    command = ["systemd-analyze", "syscall-filter", "--no-pager"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    groups: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("@"):
            groups[line.strip()] = []
        elif groups and re.match(r"    [@\w]", line):
            list(groups.values())[-1].append(line.strip())
    for name, (_, group) in NEWER.items():
        groups[group].append(name)
    del groups["@known"]
    return {group: sorted(names) for group, names in sorted(groups.items())}


def main() -> None:
    """Write the module."""
    tables = [read_numbers(*header) for header in HEADERS.values()]
    for table in tables:
        table |= {name: number for name, (number, _) in NEWER.items()}
    names = sorted(set().union(*tables))
    rows = ("/".join([name, *(str(table.get(name, "")) for table in tables)]) for name in names)
    numbers = "\n".join(wrap(" ".join(rows), 118, break_on_hyphens=False))
    groups = "\n".join(
        line
        for group, members in read_groups().items()
        for line in wrap(f"{group}: {' '.join(members)}", 118, break_on_hyphens=False)
    )
    TARGET.write_text(
        f'"""Numbers and groups of system calls: made by ``docs/make_system_calls.py``, which names the sources."""\n\n'
        f'ARCHITECTURES = {tuple(HEADERS)!r}\n\nNUMBERS = """\n{numbers}\n"""\n'
        f'"""``NAME/NUMBER/NUMBER/NUMBER`` in the order of the architectures; nothing where one lacks it."""\n\n'
        f'GROUPS = """\n{groups}\n"""\n"""``@GROUP: MEMBER ..``, a member may be a group."""\n'.replace("'", '"'),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
