"""What a process is given of sockets, row by row, as systemd's was."""

import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest

from supervisord_py.convert.draft import SourceFile
from supervisord_py.convert.formats import convert
from supervisord_py.convert.toml_text import unit_text
from tests.compat.rows import Matrix, Row, judge, judged
from tests.convert.bench import KEYS, around
from tests.integration.supervisor_rig import SYSTEM_PYTHON, supervisor, until

pytestmark = [pytest.mark.xdist_group("systemd-rows"), pytest.mark.slow]

DUMP_SOCKETS = Path(__file__).parent / "dump_sockets.py"
SERVICES = {"": "", "accept": "", "inetd": "StandardInput=socket\n"}
VARIABLES = re.compile("LISTEN_.*|REMOTE_.*")


def text_of(row: Row, folder: Path) -> tuple[str, str, list[str]]:
    """Return the service, the socket unit and its addresses, in a folder that is ours and on a port that is free."""
    python = sys.executable if os.geteuid() else SYSTEM_PYTHON
    told = row.data["socket"].replace("/run/", f"{folder}/")
    if "18080" in told:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            told = told.replace("18080", str(probe.getsockname()[1]))
    command = f"ExecStart={python} -S {folder}/{DUMP_SOCKETS.name} {folder}/told.json"
    service = f"[Service]\n{SERVICES[row.data['service']]}{command}\n"
    return service, f"[Socket]\n{told}\n", re.findall(r"ListenStream=(.*)", told)


def connect(address: str) -> socket.socket:
    if address.startswith("/"):
        client = socket.socket(socket.AF_UNIX)
        client.connect(address)
        return client
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))


@pytest.mark.parametrize("row", judged(Matrix.SOCKETS), ids=lambda row: row.id)
def test_a_process_is_given_what_systemd_gave_it(row: Row) -> None:
    """The descriptors and their kinds, and the variables that say what they are."""
    addresses: list[str] = []

    def prepare(folder: Path) -> None:
        folder.chmod(0o755)
        shutil.copy(DUMP_SOCKETS, folder)
        service, sockets, found = text_of(row, folder)
        addresses.extend(found)
        (folder / "units" / "web.toml").write_text(translate_both(service, sockets))

    with supervisor({}, prepare=prepare) as running:
        running.wait_state("web", "active")
        with connect(addresses[0]):
            file = running.folder / "told.json"
            told = json.loads(until(lambda: file.exists() and file.read_text(), "what it was given"))
    observed = row.data["observed"]
    wanted = {key: value for key, value in observed["env"].items() if VARIABLES.fullmatch(key)}
    if "LISTEN_FDNAMES" in wanted:
        # The name of the socket unit.
        wanted["LISTEN_FDNAMES"] = re.sub(r"skx\d\.socket", "web.socket", wanted["LISTEN_FDNAMES"])
    seen = {key: value for key, value in told["env"].items() if VARIABLES.fullmatch(key)}
    if "LISTEN_PID" in seen:
        assert seen["LISTEN_PID"] == str(told["pid"])
        seen["LISTEN_PID"] = "<pid>"
    kinds = {fd: kind for fd, kind in observed["fds"].items() if fd not in "12" or "accept inetd" in row.id}
    given = {fd: kind for fd, kind in told["fds"].items() if fd not in "12" or "accept inetd" in row.id}
    judge(row, {"env": wanted, "fds": kinds}, {"env": seen, "fds": given})


def translate_both(service: str, sockets: str) -> str:
    """Return the unit that the two are here."""
    files = [SourceFile("web@.service" if "Accept=yes" in sockets else "web.service", service)]
    conversion = convert(
        "systemd", [*files, SourceFile("web.socket", f"{sockets}[Install]\nWantedBy=sockets.target\n")], around()
    )
    assert not conversion.not_carried
    (draft,) = conversion.drafts.values()
    return unit_text(draft, KEYS, "converted")
