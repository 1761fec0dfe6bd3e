"""Wheels of agents for tests, made without a build: just the files that count."""

import io
import zipfile
from collections.abc import Mapping


def wheel_bytes(
    name: str, version: str, files: Mapping[str, str], *, units: Mapping[str, str], headers: str = "", info: str = ""
) -> bytes:
    """Return a pure wheel.

    Args:
        name: The distribution.
        version: Its version.
        files: Texts by path.
        units: Texts of unit files by unit.
        headers: More lines of METADATA.
        info: What the ``.dist-info`` folder is called, where that is wrong on purpose.
    """
    folder = f"{info or f'{name}-{version}'}.dist-info"
    texts = {
        **files,
        **{f"supervisord_py_units/{unit}.toml": text for unit, text in units.items()},
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{headers}\n",
        f"{folder}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{folder}/RECORD": "",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in texts.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), text)
    return buffer.getvalue()
