"""``supervisord-py keygen`` and ``sign``: keys, and signatures of agent wheels and unit files.

Keys to sign with are minisign's, keys for remote access (``--curve``) those of ZeroMQ.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

import click

from supervisord_py.host.agent_wheels import WHEEL_SUFFIX, WheelError, read_wheel
from supervisord_py.host.hot_files import UNIT_SUFFIX
from supervisord_py.host.places import default_places
from supervisord_py.host.signing import KEY_SUFFIX, SIGNATURE_SUFFIX, make_key, seal_key, sign, unseal_key
from supervisord_py.model.names import parse_unit_name
from supervisord_py.wire.curve import CLIENT, REMOTE_FOLDER, SERVER, Certificate, format_certificate, is_key_name
from supervisord_py.wire.curve import PUBLIC_SUFFIX as CURVE_PUBLIC
from supervisord_py.wire.curve import SECRET_SUFFIX as CURVE_SECRET
from supervisord_py.wire.minisign import (
    Claims,
    MinisignError,
    SecretKey,
    format_claims,
    format_public_key,
    format_sealed_key,
    format_signature,
    parse_sealed_key,
)

SECRET_SUFFIX = ".key"
DEFAULT_NAME = "signing"
_UNPROTECTED = "signature from supervisord-py, verified by minisign too"


@click.command("keygen")
@click.option("-o", "--output", metavar="DIR", help="Where the files go (default: beside the settings).")
@click.option("--name", metavar="NAME", help="What they are called (default: signing; with --curve: client).")
@click.option("--password-file", metavar="FILE", help="Encrypt the secret key with the first line of this file.")
@click.option("--curve", is_flag=True, help="Make keys for remote access: NAME.key_secret and NAME.key.")
def keygen_command(output: str | None, name: str | None, password_file: str | None, curve: bool) -> None:
    """Make a pair of keys to sign agent wheels and unit files with: NAME.key, which is secret, and NAME.pub.

    The files are minisign's. Nobody trusts the new key until NAME.pub lies in the keys folder of a supervisor.

    With --curve they are for supctl --remote and [control.remote]: NAME.key_secret, which is secret, and NAME.key. The
    supervisor's own key is called server.
    """
    if curve:
        if password_file is not None:
            raise click.UsageError("--password-file: keys of CURVE are not encrypted; keep NAME.key_secret to yourself")
        _make_curve_keys(output, CLIENT if name is None else name)
        return
    name = DEFAULT_NAME if name is None else name
    folder = Path(output) if output is not None else _settings_folder()
    if os.path.basename(name) != name or name.startswith(".") or not name:
        raise click.UsageError(f"--name: {name!r} is not the name of a file")
    secret_path, public_path = folder / f"{name}{SECRET_SUFFIX}", folder / f"{name}{KEY_SUFFIX}"
    for path in (secret_path, public_path):
        if os.path.lexists(path):
            raise click.ClickException(f"{path} is there already; remove it, or choose another --name")
    password = None if password_file is None else _password(password_file)
    key = make_key()
    try:
        text = format_sealed_key(seal_key(key, password))
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        _write_new(secret_path, text, 0o600)
        _write_new(public_path, format_public_key(key.public), 0o644)
    except MinisignError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(_cannot("write", error, folder)) from None
    kind = "encrypted" if password is not None else "not encrypted: whoever reads it can sign"
    click.echo(f"wrote {secret_path} (secret, {kind}) and {public_path} (key {key.public.name})")
    click.echo(
        f"to trust it: install -D -m 0644 {public_path} {_settings_folder() / 'keys' / public_path.name}", err=True
    )


def _make_curve_keys(output: str | None, name: str) -> None:
    import zmq

    if not is_key_name(name):
        raise click.UsageError(f"--name: {name!r} is not the name of a key: letters, digits and _ . @ - only")
    folder = Path(output) if output is not None else _settings_folder() / REMOTE_FOLDER
    secret_path, public_path = folder / f"{name}{CURVE_SECRET}", folder / f"{name}{CURVE_PUBLIC}"
    for path in (secret_path, public_path):
        if os.path.lexists(path):
            raise click.ClickException(f"{path} is there already; remove it, or choose another --name")
    public, secret = (part.decode() for part in zmq.curve_keypair())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(secret_path, format_certificate(Certificate(public, secret), name), 0o600)
        _write_new(public_path, format_certificate(Certificate(public), name), 0o644)
    except OSError as error:
        raise click.ClickException(_cannot("write", error, folder)) from None
    click.echo(f"wrote {secret_path} (secret: whoever reads it can act with it) and {public_path} (key {public})")
    if name == SERVER:
        told = f'it is used by keys = "{folder}" in supervisord.toml; clients need a copy of {public_path}'
    else:
        told = (
            f"to let it in: copy {public_path} into the keys folder of the supervisor; it needs {SERVER}.key from there"
        )
    click.echo(told, err=True)


@click.command("sign")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option("--key", "key_path", metavar="FILE", help="The secret key (default: signing.key beside the settings).")
@click.option("--password-file", metavar="FILE", help="The first line is its password; asked for on a terminal.")
@click.option("--comment", metavar="TEXT", default="", help="Said in the signature too, and covered by it.")
def sign_command(files: tuple[str, ...], key_path: str | None, password_file: str | None, comment: str) -> None:
    """Write FILE.minisig beside each file: for agent wheels, unit files (NAME.toml), or anything else.

    The trusted comment of a wheel names its name, version and units, that of a unit file the unit, and both the time.
    """
    key = _secret_key(
        Path(key_path) if key_path else _settings_folder() / f"{DEFAULT_NAME}{SECRET_SUFFIX}", password_file
    )
    for file in files:
        path = Path(file)
        try:
            data = path.read_bytes()
            claims = _claims(path, data, comment)
            text = format_signature(sign(data, key, format_claims(claims)), _UNPROTECTED)
            _replace(path.with_name(path.name + SIGNATURE_SUFFIX), text)
        except OSError as error:
            raise click.ClickException(_cannot("sign", error, path)) from None
        except (WheelError, MinisignError, ValueError) as error:
            raise click.ClickException(f"cannot sign {path}: {error}") from None
        units = f" (units {', '.join(claims.units)})" if claims.units else ""
        click.echo(f"wrote {path}{SIGNATURE_SUFFIX}{units}")


def _claims(path: Path, data: bytes, comment: str) -> Claims:
    """What is said of a file; a wheel or unit file that no hot directory would take is refused."""
    claims = Claims(timestamp=int(time.time()), file=path.name, comment=comment)
    if path.name.endswith(WHEEL_SUFFIX):
        wheel = read_wheel(data, path.name)
        return Claims(claims.timestamp, path.name, wheel.name, wheel.version, tuple(sorted(wheel.units)), comment)
    if path.name.endswith(UNIT_SUFFIX):
        name = path.name.removesuffix(UNIT_SUFFIX)
        parse_unit_name(name)
        return Claims(claims.timestamp, path.name, units=(name,), comment=comment)
    return claims


def _secret_key(path: Path, password_file: str | None) -> SecretKey:
    try:
        sealed = parse_sealed_key(path.read_text(encoding="utf-8"))
        password: bytes | None = None
        if sealed.derivation is not None:
            if password_file is not None:
                password = _password(password_file)
            elif sys.stdin.isatty():
                password = click.prompt(f"Password of {path}", hide_input=True, err=True).encode()
            else:
                raise click.ClickException(f"{path} is encrypted: --password-file FILE, or sign on a terminal")
        return unseal_key(sealed, password)
    except (OSError, UnicodeDecodeError) as error:
        hint = "; supervisord-py keygen makes one" if isinstance(error, FileNotFoundError) else ""
        raise click.ClickException(_cannot("read", error, path) + hint) from None
    except MinisignError as error:
        raise click.ClickException(f"{path}: {error}") from None


def _password(file: str) -> bytes:
    try:
        password = Path(file).read_bytes().partition(b"\n")[0].removesuffix(b"\r")
    except OSError as error:
        raise click.ClickException(_cannot("read", error, Path(file))) from None
    if not password:
        raise click.ClickException(f"--password-file: the first line of {file} is empty")
    return password


def _settings_folder() -> Path:
    return default_places(dict(os.environ), os.getuid(), os.path.expanduser("~")).settings.parent


def _write_new(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _replace(path: Path, text: str) -> None:
    """Write it whole or not at all: a hot directory may be looking."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write_new(temporary, text, 0o644)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _cannot(verb: str, error: Exception, path: Path) -> str:
    why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not UTF-8"
    return f"cannot {verb} {path}: {why}"
