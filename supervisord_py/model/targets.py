"""What health checks look at, as text: addresses, URLs, paths, regular expressions; and where remote clients come.

``parse_`` functions check what a file says and give it back; ``split_`` functions take what was checked apart.
"""

import ipaddress
import re
from typing import Final

from msgspec import Struct

from supervisord_py.model.problems import BadValue

_HOST: Final = r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
_ADDRESS: Final = re.compile(rf"{_HOST}:(?P<port>\d{{1,5}})", re.ASCII)
_URL: Final = re.compile(rf"(?P<scheme>https?)://{_HOST}(?::(?P<port>\d{{1,5}}))?(?P<path>[/?][!-~]*)?", re.ASCII)
_PORT_MAX: Final = 65535
_SOCKET_PATH_MAX: Final = 107
"""The kernel's limit on the address of a Unix socket [bytes]."""
_REGEX_MAX: Final = 1000
_ENDPOINT: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+|\*)):(?P<port>[0-9]{1,5})", re.ASCII
)

SCHEME: Final = "tcp://"
"""What the address of a remote supervisor begins with; it may be left out."""


class Url(Struct, frozen=True):
    """A URL taken apart; ``host`` is without brackets, ``path`` goes from the slash to the end, the query included."""

    is_tls: bool
    host: str
    port: int
    path: str


def parse_address(text: str) -> str:
    """Check ``HOST:PORT``; an IPv6 address stands in brackets."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise BadValue(f"{text!r} is not an address", 'write "HOST:PORT", such as "localhost:8080" or "[::1]:8080"')
    _check_port(match["port"])
    return text


def split_address(text: str) -> tuple[str, int]:
    """Host, without brackets, and port of what ``parse_address`` accepts."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def parse_endpoint(text: str, *, listens: bool) -> str:
    """Read ``tcp://HOST:PORT`` or ``HOST:PORT``; an IPv6 address stands in brackets.

    Args:
        text: What was written.
        listens: It is bound: an address of this machine, or ``*`` for all; no name is one, but for ``localhost``.

    Returns:
        It as ZeroMQ has it, ``tcp://HOST:PORT``.

    Raises:
        BadValue: It is no such address.
    """
    match = _ENDPOINT.fullmatch(text.removeprefix(SCHEME))
    if match is None:
        raise BadValue(f"{text!r} is not an address", 'write "tcp://HOST:PORT", such as "tcp://127.0.0.1:7700"')
    _check_port(match["port"])
    v6, host, port = match["v6"], match["host"], int(match["port"])
    if v6 is not None:
        try:
            return f"{SCHEME}[{ipaddress.IPv6Address(v6)}]:{port}"
        except ValueError:
            raise BadValue(f"{v6!r} is not an IPv6 address") from None
    if not listens:
        if host == "*":
            raise BadValue("'*' is nothing to connect to", "name the host")
        return f"{SCHEME}{host}:{port}"
    if host == "localhost":
        host = "127.0.0.1"
    if host != "*":
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            hint = "write an IP address, or * for all of this machine"
            raise BadValue(f"{host!r} is not an address to listen on", hint) from None
    return f"{SCHEME}{host}:{port}"


def parse_url(text: str) -> str:
    """Check a URL of HTTP: a host, perhaps a port, a path and a query; no user, no fragment."""
    match = _URL.fullmatch(text)
    if match is None or "#" in (match["path"] or ""):
        raise BadValue(f"{text!r} is not a URL", 'write it in full, such as "http://localhost:8080/health"')
    _check_port(match["port"] or "80")
    return text


def split_url(text: str) -> Url:
    """Take apart what ``parse_url`` accepts."""
    match = _URL.fullmatch(text)
    assert match is not None, f"internal error: {text!r} is not a URL"
    is_tls, path = match["scheme"] == "https", match["path"] or "/"
    port = int(match["port"] or (443 if is_tls else 80))
    return Url(is_tls, match["host"].strip("[]"), port, path if path.startswith("/") else f"/{path}")


def parse_path(text: str) -> str:
    """Check an absolute path."""
    if not text.startswith("/") or not text.isprintable():
        raise BadValue(f"{text!r} is not an absolute path", "write a path that begins with /")
    return text


def parse_socket_path(text: str) -> str:
    """Check the path of a Unix socket, or ``@NAME`` of an abstract one."""
    if not text.startswith(("/", "@")) or text in ("/", "@") or not text.isprintable():
        raise BadValue(f"{text!r} is not the path of a socket", "write an absolute path, or @NAME of an abstract one")
    if len(text.encode()) > _SOCKET_PATH_MAX:
        raise BadValue(f"{text!r} is too long for a socket", f"the kernel allows {_SOCKET_PATH_MAX} bytes")
    return text


def parse_regex(text: str) -> str:
    """Check a regular expression (of Python)."""
    if not text:
        raise BadValue("an empty regular expression matches every line", "write what is to be found")
    if len(text) > _REGEX_MAX:
        raise BadValue(f"a regular expression of {len(text)} characters is too long", f"at most {_REGEX_MAX}")
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadValue(
            f"{text!r} is not a regular expression: {error}",
            "in single quotes a backslash is itself; a literal bracket is written \\[ or \\(",
        ) from None
    return text


def _check_port(text: str) -> None:
    if not 1 <= int(text) <= _PORT_MAX:
        raise BadValue(f"there is no port {text}", f"ports are 1 to {_PORT_MAX}")
