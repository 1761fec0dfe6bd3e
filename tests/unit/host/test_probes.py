"""Health checks that the supervisor makes itself, against servers that answer well, badly, late and not at all."""

import asyncio
import errno
import os
import re
import select
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from output_rig import Rig as Outputs
from output_rig import rig as outputs

from supervisord_py.core.actions import RunProbe
from supervisord_py.core.events import Event, ProbeFinished
from supervisord_py.host import probes
from supervisord_py.host.probes import LINE_LOOKED_AT, Probes, TooSlowError, cpu_limit
from supervisord_py.model.log import LogPolicy
from supervisord_py.model.states import ProbeKind
from supervisord_py.model.unit import SECOND_NS, Probe

CERTIFICATE = Path(__file__).parents[2] / "data" / "self-signed.pem"
LIFE = "a" * 32
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Rig:
    """Probes with the answers that they gave."""

    def __init__(self, output: Outputs, life: str = LIFE) -> None:
        self.output = output
        self.life = life
        self.events: list[Event] = []
        self.news = asyncio.Event()
        self.probes = Probes(submit=self._submit, output=output.output, invocation_of=lambda unit: self.life)
        self._ids = 0

    def _submit(self, event: Event) -> None:
        self.events.append(event)
        self.news.set()

    def ask(self, timeout_s: float = 20.0, unit: str = "web", name: str = "up", **subject: str) -> int:
        self._ids += 1
        probe = Probe(name, ProbeKind.READINESS, timeout_ns=round(timeout_s * SECOND_NS), **subject)  # type: ignore[arg-type]
        self.probes.run(RunProbe(self._ids, unit, name, probe))
        return self._ids

    async def answer(self, probe_id: int) -> ProbeFinished:
        async with asyncio.timeout(20):
            while True:
                for event in self.events:
                    if isinstance(event, ProbeFinished) and event.probe_id == probe_id:
                        return event
                self.news.clear()
                await self.news.wait()

    async def check(self, timeout_s: float = 20.0, **subject: str) -> tuple[bool | None, str]:
        found = await self.answer(self.ask(timeout_s, **subject))
        return found.ok, found.detail


def drive(folder: Path, test: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with outputs(folder / "log") as output:
            rig = Rig(output)
            try:
                await test(rig)
            finally:
                await rig.probes.close()

    asyncio.run(main())


@asynccontextmanager
async def server(serve: Serve, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on a port of its own."""
    clients: set[asyncio.Task[None]] = set()

    def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def work() -> None:
            try:
                await serve(reader, writer)
            except OSError:
                pass
            finally:
                writer.transport.abort()

        task = asyncio.get_running_loop().create_task(work())
        clients.add(task)
        task.add_done_callback(clients.discard)

    listening = await asyncio.start_server(came, host, 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for _ in range(10):  # connections that are being accepted
            await asyncio.sleep(0)
        for task in list(clients):
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


def saying(answer: bytes, *, asked: list[bytes] | None = None) -> Serve:
    """Answers a request so, in two pieces, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if asked is not None:
            asked.append(request)
        for piece in (answer[:9], answer[9:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()

    return serve


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes everything and never answers."""
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("answer", "ok", "detail"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", True, "200 OK"),
        (b"HTTP/1.0 204 No Content\r\n\r\n", True, "204 No Content"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://localhost:1/\r\n\r\n", True, "302 Found"),
        (b"HTTP/1.1 399\r\n\r\n", True, "399"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False, "404 Not Found"),
        (b"HTTP/1.1 503 Not \x1byet\r\n\r\n", False, "503 Not yet"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 500 Oh\r\n\r\n", False, "500 Oh"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000, True, "200 OK"),
        (b"SSH-2.0-OpenSSH_9\r\n", False, "no answer of HTTP: 'SSH-2.0-OpenSSH_9\\r\\n'"),
        (b"HTTP/x 200 OK\r\n\r\n", False, "no answer of HTTP: 'HTTP/x 200 OK\\r\\n\\r\\n'"),
        (b"HTTP/1.1 200" + b"y" * 10_000, False, f"no answer of HTTP: {'HTTP/1.1 200' + 'y' * 48!r}"),
        (b"", False, "it closed the connection unanswered"),
    ],
)
def test_an_answer_over_http_is_judged_by_its_status(tmp_path: Path, answer: bytes, ok: bool, detail: str) -> None:
    async def test(rig: Rig) -> None:
        async with server(saying(answer)) as port:
            assert await rig.check(http=f"http://127.0.0.1:{port}/") == (ok, detail)

    drive(tmp_path, test)


def test_what_is_asked_over_http(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def test(rig: Rig) -> None:
        async with server(saying(b"HTTP/1.1 200 OK\r\n\r\n", asked=asked), "::1") as port:
            assert (await rig.check(http=f"http://[::1]:{port}/live?deep=1"))[0]
            lines = asked[0].decode().split("\r\n")
            assert lines[:2] == ["GET /live?deep=1 HTTP/1.1", f"Host: [::1]:{port}"]
            assert "Connection: close" in lines

    drive(tmp_path, test)


def test_a_certificate_is_not_verified(tmp_path: Path) -> None:
    """A service is asked under localhost, and its certificate names what clients call it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    async def test(rig: Rig) -> None:
        async with server(saying(b"HTTP/1.1 200 OK\r\n\r\n"), tls=context) as port:
            assert await rig.check(http=f"https://127.0.0.1:{port}/") == (True, "200 OK")
            assert await rig.check(http=f"https://localhost:{port}/") == (True, "200 OK")
        async with server(saying(b"HTTP/1.1 200 OK\r\n\r\n" * 20)) as port:
            ok, detail = await rig.check(0.3, http=f"https://127.0.0.1:{port}/")
            assert not ok, "it speaks no TLS"
            assert detail != "200 OK"

    drive(tmp_path, test)


def test_a_time_out_while_the_supervisor_was_held_up_says_nothing(tmp_path: Path) -> None:
    """Found by an hour of real faults: a manager that had been stopped blamed the units for its own silence."""

    async def test(rig: Rig) -> None:
        async with server(silent) as port:
            probe_id = rig.ask(0.2, http=f"http://127.0.0.1:{port}/")
            await asyncio.sleep(0)
            select.select([], [], [], 0.2 + 2 * probes.HELD_UP_S)
            found = await rig.answer(probe_id)
            assert found.ok is None
            assert found.detail.startswith("the supervisor itself was held up for ")

    drive(tmp_path, test)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_time_out_covers_all_of_it(tmp_path: Path, scheme: str) -> None:
    """Also a handshake that never ends, and a status line that never ends."""

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 20")
        await asyncio.Event().wait()

    async def test(rig: Rig) -> None:
        for serve in (silent, half if scheme == "http" else silent):
            async with server(serve) as port:
                found = await rig.check(0.2, http=f"{scheme}://127.0.0.1:{port}/")
                assert found == (False, "no answer within 200ms")

    drive(tmp_path, test)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_tcp_is_good_when_it_connects(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async with server(silent) as port:
            assert await rig.check(tcp=f"127.0.0.1:{port}") == (True, "connected")
            # The name has an IPv6 address first on many machines, where nobody listens.
            assert await rig.check(tcp=f"localhost:{port}") == (True, "connected")
        assert await rig.check(tcp=f"127.0.0.1:{free_port()}") == (False, "connection refused")
        assert await rig.check(http=f"http://127.0.0.1:{free_port()}/") == (False, "connection refused")

    drive(tmp_path, test)


def test_a_port_that_answers_itself_is_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, and the kernel may choose the port that is called for the caller's own end."""
    port = free_port()

    class Bound(socket.socket):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind(("127.0.0.1", port))

    async def test(rig: Rig) -> None:
        monkeypatch.setattr(probes.socket, "socket", Bound)
        assert await rig.check(tcp=f"127.0.0.1:{port}") == (False, "connection refused")

    drive(tmp_path, test)


def test_a_name_that_is_not_looked_up_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs costs the checks of that name, and one thread."""
    let_go = threading.Event()
    looked_up: list[str] = []
    find = socket.getaddrinfo

    def hang(host: str, *arguments: Any, **keys: Any) -> Any:
        looked_up.append(host)
        if host == "gone.example":
            let_go.wait()
        return find("127.0.0.1", *arguments, **keys)

    async def test(rig: Rig) -> None:
        monkeypatch.setattr(probes.socket, "getaddrinfo", hang)
        async with server(silent) as port:
            assert await rig.check(0.1, tcp=f"gone.example:{port}") == (False, "no answer within 100ms")
            assert await rig.check(tcp=f"gone.example:{port}") == (False, "the look before has not come back")
            assert await rig.check(tcp=f"here.example:{port}") == (True, "connected")
        assert looked_up == ["gone.example", "here.example"]

    try:
        drive(tmp_path, test)
    finally:
        let_go.set()


def test_a_name_without_an_address(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        ok, detail = await rig.check(tcp="no-such-host.invalid:80")
        assert ok is False
        assert detail.startswith("no-such-host.invalid: ")

    drive(tmp_path, test)


def test_unix_is_good_when_it_connects(tmp_path: Path) -> None:
    path, abstract = tmp_path / "s", f"spy-test-{os.getpid()}"

    async def test(rig: Rig) -> None:
        assert await rig.check(unix=str(path)) == (False, "no such file or directory")
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other:
            listening.bind(str(path))
            assert await rig.check(unix=str(path)) == (False, "connection refused"), "nobody listens yet"
            listening.listen()
            assert await rig.check(unix=str(path)) == (True, "connected")
            other.bind(f"\0{abstract}")
            other.listen()
            assert await rig.check(unix=f"@{abstract}") == (True, "connected")
        assert await rig.check(unix=str(path)) == (False, "connection refused"), "the file is there still"

    drive(tmp_path, test)


def test_a_unix_socket_with_a_full_queue_is_not_good(tmp_path: Path) -> None:
    """A non-blocking connect to one says EAGAIN, which is not "under way"."""
    path = tmp_path / "s"

    async def test(rig: Rig) -> None:
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
            listening.bind(str(path))
            listening.listen(0)
            first.connect(str(path))
            assert await rig.check(0.2, unix=str(path)) == (False, "no answer within 200ms")
            asked = rig.ask(unix=str(path))
            accepted, _ = listening.accept()
            accepted.close()
            assert (await rig.answer(asked)).ok is True

    drive(tmp_path, test)


def test_a_file_is_there_or_not(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert await rig.check(file=str(tmp_path / "f")) == (False, "no such file or directory")
        (tmp_path / "f").write_text("")
        assert await rig.check(file=str(tmp_path / "f")) == (True, "it is there")
        assert await rig.check(file=str(tmp_path / "f" / "g")) == (False, "not a directory")

    drive(tmp_path, test)


async def say(rig: Rig, data: bytes) -> None:
    rig.output.sources[0].write(data)
    await rig.output.output.drain("web")


def test_a_line_of_this_life_s_output(tmp_path: Path) -> None:
    """What the life before said does not count; nor does a line without its end."""

    async def test(rig: Rig) -> None:
        missing, found = (False, "no line of its output matches"), (True, "a line of its output matches")
        ready = r"^ready \d+$"
        assert await rig.check(log=ready) == missing, "there is no output at all"
        rig.output.attach("web")
        rig.output.output.mark_life("web", "b" * 32)
        await say(rig, b"ready 1\n")
        rig.output.output.mark_life("web", LIFE)
        assert await rig.check(log=ready) == missing
        await say(rig, b"not ready 2\nrea")
        assert await rig.check(log=ready) == missing
        await say(rig, b"dy ")
        assert await rig.check(log=ready) == missing
        await say(rig, b"3\nmore\n")
        assert await rig.check(log=ready) == found
        assert await rig.check(log="more") == found, "another expression begins at the beginning of the life"
        assert await rig.check(log="less") == missing

    drive(tmp_path, test)


def test_a_line_is_found_over_rotations_and_by_a_new_manager(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        rig.output.attach("web", LogPolicy(max_bytes=100, backups=50))
        rig.output.output.mark_life("web", LIFE)
        await say(rig, b"first\n")
        assert (await rig.check(log="line 5[0-9]"))[0] is False
        for number in range(80):
            await say(rig, b"this is line %d\n" % number)
        assert len(rig.output.files()) > 10
        assert (await rig.check(log="line 5[0-9]"))[0] is True
        assert (await rig.check(name="other", log="line 99"))[0] is False
        another = Rig(rig.output)
        assert (await another.check(log="^first$"))[0] is True, "from the beginning of the life on"
        await another.probes.close()
        rig.life = "c" * 32
        assert (await rig.check(log="line 5[0-9]"))[0] is False, "a new life has said nothing yet"

    drive(tmp_path, test)


def test_an_expression_that_takes_for_ever_is_stopped(tmp_path: Path) -> None:
    """Lines that take too long are passed over, those around them are looked at; a long line is looked at in part."""

    async def test(rig: Rig) -> None:
        rig.output.attach("web")
        rig.output.output.mark_life("web", LIFE)
        await say(rig, b"a line\n" + (b"a" * 60 + b"!\n") * 2 + b"b" * (2 * LINE_LOOKED_AT) + b" late\n")
        slow = r"^(a+)+$|late"
        assert await rig.check(log=slow) == (
            False,
            "2 lines of its output are too much for the regular expression",
        )
        await say(rig, b"late\n")
        assert (await rig.check(log=slow))[0] is True

    drive(tmp_path, test)


def test_a_limit_of_processor_time_ends_with_its_body() -> None:
    with pytest.raises(TooSlowError), cpu_limit(0.01):
        re.search(r"(a+)+$", "a" * 60 + "!")
    with cpu_limit(0.01):
        pass
    sum(range(10_000_000))


def test_so_many_have_their_turn_in_the_order_of_their_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time-out counts from the turn on: to wait for it is not the unit's fault."""
    monkeypatch.setattr(probes, "AT_A_TIME", 1)

    async def test(rig: Rig) -> None:
        (tmp_path / "f").write_text("")
        async with server(silent) as port:
            slow = [rig.ask(0.3, name=f"slow{place}", http=f"http://127.0.0.1:{port}/") for place in range(2)]
            good = rig.ask(0.3, name="good", file=str(tmp_path / "f"))
            assert (await rig.answer(good)).ok is True
            assert [event.probe_id for event in rig.events if isinstance(event, ProbeFinished)] == [*slow, good]

    drive(tmp_path, test)


def test_only_the_last_question_is_answered(tmp_path: Path) -> None:
    """Asked again under the same name, or about a unit whose life is over."""

    async def test(rig: Rig) -> None:
        async with server(silent) as port:
            rig.ask(unit="other", http=f"http://127.0.0.1:{port}/")
            rig.ask(http=f"http://127.0.0.1:{port}/")
            await asyncio.sleep(0)
            assert (await rig.check(tcp=f"127.0.0.1:{port}"))[0] is True
            rig.probes.forget("other")
            assert (await rig.check(tcp=f"127.0.0.1:{port}"))[0] is True
            assert [event.ok for event in rig.events if isinstance(event, ProbeFinished)] == [True, True]

    drive(tmp_path, test)


def test_what_the_supervisor_lacks_is_not_held_against_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(rig: Rig) -> None:
        def none_left(*_: object) -> socket.socket:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(probes.socket, "socket", none_left)
        assert await rig.check(tcp="127.0.0.1:1") == (None, "too many open files")

    drive(tmp_path, test)
