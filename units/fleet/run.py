"""Run the fleet in a folder of its own, beside whatever else is supervised here: ``make fleet``.

    run.py FOLDER

The folder has the control socket (``supctl --socket FOLDER/control.sock``), journal, logs, the hot directory, and a key
that was made for it.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def prepare(folder: Path) -> list[str]:
    """Make the folder, a key and the settings; returns the options of ``supervisord-py run``."""
    for name in ("hot", "keys"):
        (folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    if not (folder / "fleet.key").exists():
        keygen = [sys.executable, "-m", "supervisord_py", "keygen", "--name", "fleet", "-o", str(folder)]
        subprocess.run(keygen, check=True, capture_output=True)
        (folder / "fleet.pub").rename(folder / "keys" / "fleet.pub")
    settings = folder / "supervisord.toml"
    settings.write_text((HERE / "etc" / "supervisord.toml").read_text().replace("@FOLDER@", str(folder)))
    options = {"--config": settings, "--runtime-dir": folder, "--state-dir": folder / "s", "--log-dir": folder / "log"}
    return [str(word) for option in options.items() for word in option]


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    run = [sys.executable, "-m", "supervisord_py", "run", str(HERE), *prepare(where)]
    os.execv(run[0], run)
