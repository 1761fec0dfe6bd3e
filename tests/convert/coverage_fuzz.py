"""The converters under a fuzzer that follows coverage: ``python -m tests.convert.coverage_fuzz FOLDER``.

FOLDER is the corpus: it is filled with the files of others where they are there, and with what the fuzzer finds.
Options of libFuzzer follow it (``-max_total_time=60``). It needs ``pip install atheris``, which is no dependency: where
it does not install, test_any_text.py does the same without looking at coverage.
"""

import sys
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed (pip install atheris)")

with atheris.instrument_imports(include=["supervisord_py.convert", "supervisord_py.model"]):
    from supervisord_py.convert.draft import ConvertError, SourceFile
    from supervisord_py.convert.formats import FORMATS
    from tests.convert.bench import FIXTURES, around, check_passes, converted

SOURCES = tuple(FORMATS)
SUFFIXES = {"pm2": ".js", "process-compose": ".yaml", "horust": ".toml", "supervisord": ".conf", "circus": ".ini"}
UNITS = (".service", ".socket", ".timer", ".target")


def one_input(data: bytes) -> None:
    """The first byte chooses the format, the rest is the file."""
    if not data:
        return
    source = SOURCES[data[0] % len(SOURCES)]
    text = data[1:].decode(errors="surrogateescape")
    files = [SourceFile(f"/x/a{SUFFIXES.get(source, '')}", text, "/x")]
    if source == "systemd":
        files = [SourceFile(f"/x/a{UNITS[data[0] // len(SOURCES) % len(UNITS)]}", text)]
        if not files[0].path.endswith(".service"):
            files.append(SourceFile("/x/a.service", "[Service]\nExecStart=/bin/true\n"))
    try:
        conversion = converted(source, files, around(read=lambda pattern, base: []))
    except ConvertError:
        return
    check_passes(conversion)


def seed(folder: Path) -> None:
    """Put what others wrote into the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(SOURCES):
        home = FIXTURES / {"systemd": "systemd-execute/units"}.get(source, source)
        for path in sorted(home.glob("*"))[:40]:
            if path.is_file() and not path.name.startswith("_"):
                (folder / f"{source}-{path.name[-60:]}").write_bytes(bytes([number]) + path.read_bytes()[:4000])


if __name__ == "__main__":
    seed(Path(sys.argv[1]))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
