"""Make the auditor's wheel, sign it, and put both into the hot directory of a fleet that runs.

    deliver.py KEY HOT_DIRECTORY [VERSION]

A wheel is a zip file: so that this works without a network and a build tool, it is written by hand here. For your own
agents: ``pip wheel .``, then ``supervisord-py sign --key KEY``.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent


def make_wheel(folder: Path, version: str) -> Path:
    """Write the wheel into a folder."""
    path = folder / f"fleet_auditor-{version}-py3-none-any.whl"
    info = f"fleet_auditor-{version}.dist-info"
    unit = (HERE / "supervisord_py_units" / "auditor.toml").read_text().replace('"1.0"', f'"{version}"')
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(HERE / "fleet_auditor" / "__init__.py", "fleet_auditor/__init__.py")
        wheel.writestr("supervisord_py_units/auditor.toml", unit)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: fleet-auditor\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def deliver(key: Path, hot: Path, version: str) -> None:
    """Make, sign, and bring: first the signature, then the wheel, each whole or not at all."""
    aside = hot.parent / "wheels"
    aside.mkdir(exist_ok=True)
    wheel = make_wheel(aside, version)
    signature = wheel.with_name(f"{wheel.name}.minisig")
    signature.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "supervisord_py", "sign", "--key", str(key), str(wheel)], check=True)
    for path in (signature, wheel):
        os.replace(path, hot / path.name)


if __name__ == "__main__":
    deliver(Path(sys.argv[1]), Path(sys.argv[2]), *(sys.argv[3:] or ["1.0"]))
