"""``convert systemd``: what a directive becomes, what systemd's defaults are written out as, and what is said of the
rest."""

import pytest

from supervisord_py.convert.draft import ConvertError, SourceFile
from supervisord_py.convert.formats import convert
from supervisord_py.convert.systemd_syntax import parse_unit_file
from tests.convert.bench import around, check_passes, converted, loaded, lost_of, text_of

SERVICE = "[Service]\nExecStart=/bin/true\n"


def test_a_service_with_systemds_defaults() -> None:
    """What is another default here is written out, and a unit that nobody enables is not enabled."""
    assert text_of("systemd", SERVICE, "a.service") == (
        '# a\n[unit]\nstart-limit-interval-sec = "10s"\nstart-limit-burst = 5\nenabled = false\n\n'
        '[service]\nexec-start = "/bin/true"\nrestart = "no"\n\n'
        '[sandbox]\nkeyring-mode = "private"\nenforce = "best-effort"\n'
    )


def test_restarts_are_those_of_systemd() -> None:
    """A pause stays what it is, nothing is drawn, and the start limit is the only one that ends restarts."""
    conversion = converted("systemd", [SourceFile("a.service", SERVICE + "Restart=always\nRestartSec=3\n")])
    (unit,) = loaded(conversion).unit_set.units.values()
    assert unit.service is not None
    policy = unit.service.restart
    assert (policy.restart.value, policy.delay_ns, policy.steps, policy.jitter) == ("always", 3_000_000_000, 0, 0.0)
    assert policy.failures == 0 and policy.limit is not None and policy.limit.burst == 5


def test_requires_without_after_has_no_order() -> None:
    """Requires= alone orders nothing in systemd; with After= it is one relation here."""
    conversion = converted(
        "systemd",
        [
            SourceFile("a.service", "[Unit]\nRequires=b.service c.service\nAfter=c.service d.service\n" + SERVICE),
            SourceFile("b.service", SERVICE),
            SourceFile("c.service", SERVICE),
        ],
    )
    unit = loaded(conversion).unit_set.units["a"]
    assert [(each.unit, each.ordered) for each in unit.requires] == [("b", False), ("c", True)]
    assert [each.unit for each in unit.after] == ["d"]
    assert not lost_of(conversion)


def test_a_target_was_there_before_what_it_wants() -> None:
    """A target comes after its units, unless one says otherwise: systemd.target(5), default dependencies."""
    conversion = converted(
        "systemd",
        [
            SourceFile(
                "t.target", "[Unit]\nWants=a.service b.service c.service\nRequires=e.service\nBefore=c.service\n"
            ),
            SourceFile("a.service", "[Unit]\nDefaultDependencies=no\n" + SERVICE),
            SourceFile("b.service", "[Unit]\nAfter=t.target\n" + SERVICE),
            SourceFile("c.service", SERVICE),
            SourceFile("d.service", SERVICE + "[Install]\nWantedBy=t.target\n"),
            SourceFile("e.service", SERVICE),
            SourceFile("n.target", "[Unit]\nDefaultDependencies=no\nWants=e.service\n"),
        ],
    )
    units = loaded(conversion).unit_set.units
    ordered = {each.unit: each.ordered for each in (*units["t"].wants, *units["t"].requires)}
    assert ordered == {"a": False, "b": False, "c": False, "d": True, "e": True}
    assert not units["n"].wants[0].ordered
    check_passes(conversion)


def test_a_socket_and_a_timer_are_tables_of_their_service() -> None:
    """One unit comes of three, and it is enabled because the timer is."""
    text = text_of(
        "systemd",
        "[Service]\nType=oneshot\nExecStart=/bin/true\n",
        "a.service",
        a__timer="[Timer]\nOnCalendar=daily\nOnBootSec=5min\nPersistent=yes\n[Install]\nWantedBy=timers.target\n",
    )
    assert text.count("# ") == 1 and "enabled" not in text
    assert '[timer]\non-boot-sec = "5min"\non-calendar = "daily"\naccuracy-sec = "1min"\npersistent = true\n' in text


def test_an_empty_value_takes_back() -> None:
    """Lists are reset by an empty assignment; of triggers and conditions all are."""
    conversion = converted(
        "systemd",
        [
            SourceFile(
                "a.service",
                "[Unit]\nConditionPathExists=/a\nConditionUser=root\nConditionPathExists=\nConditionPathExists=/b\n"
                "[Service]\nExecStart=/bin/false\nExecStart=\nExecStart=/bin/true\nEnvironment=A=1\nEnvironment=\n"
                "User=nobody\nUser=\n",
            )
        ],
    )
    (unit,) = loaded(conversion).unit_set.units.values()
    assert [(each.kind, each.parameter) for each in unit.conditions] == [("path-exists", "/b")]
    assert unit.service is not None
    assert [command.words for command in unit.service.exec_start] == [("/bin/true",)]
    assert unit.service.context.environment == () and unit.service.context.user is None


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        (r"/bin/echo a\_b 'c d' \x41", ["/bin/echo", "a\\_b", "c d", "A"]),
        (r"/bin/echo \$x a\;b \; %% %n %p %i", ["/bin/echo", "\\$x", "a\\;b", ";", "%", "a.service", "a", ""]),
        # A blank behind a backslash that means nothing ended the word.
        ("/bin/echo e\\ f 'g\\\th'", ["/bin/echo", "e\\ f", "g\\\th"]),
        ("-@/bin/echo me ${X}", ["me", "${X}"]),
        ("!!/bin/echo %C %E %j", ["/bin/echo", "/var/cache", "/etc", "a"]),
    ],
)
def test_commands(line: str, argv: list[str]) -> None:
    """Words, escapes that mean nothing, prefixes and specifiers are what systemd makes of them."""
    conversion = converted("systemd", [SourceFile("a.service", f"[Service]\nExecStart={line}\n")])
    (unit,) = loaded(conversion).unit_set.units.values()
    assert unit.service is not None
    (command,) = unit.service.exec_start
    assert [command.argv0 or command.words[0], *command.words[1:]] == argv


def test_what_is_lost_is_told_with_its_line() -> None:
    """Each assignment that has no effect is told with file, line, key and reason."""
    conversion = converted(
        "systemd",
        [
            SourceFile(
                "a.service",
                "[Unit]\nAfter=network-online.target\nOnFailure=x.mount\n[Service]\nExecStart=/bin/true\n"
                "Type=dbus\nFrobnicate=1\nNice=lots\nKillMode=none\n[Socket]\nAccept=yes\nnonsense\n",
            )
        ],
    )
    found = {key: (line, reason) for line, key, reason in lost_of(conversion)}
    assert found["After"][0] == 2 and "network-online.target" in found["After"][1]
    assert found["OnFailure"] == (3, "x.mount: there are no mount units here")
    assert found["Type"][0] == 6 and found["Frobnicate"] == (7, "Frobnicate has no counterpart here")
    assert found["Nice"][0] == 8 and found["KillMode"][0] == 9
    assert found["Accept"] == (11, "systemd ignores the section [Socket] in a service")
    assert found["nonsense"] == (12, "a line without =, which systemd ignores")
    check_passes(conversion)


def test_a_requirement_that_is_not_there_is_no_requirement() -> None:
    """A unit that could never start would be no help; the other relations wait for their unit."""
    conversion = converted(
        "systemd", [SourceFile("a.service", "[Unit]\nRequires=b.service\nWants=c.service\n" + SERVICE)]
    )
    assert [key for _, key, _ in lost_of(conversion)] == ["Requires"]
    (unit,) = loaded(conversion).unit_set.units.values()
    assert [each.unit for each in unit.wants] == ["c"]


def test_drop_ins_and_aliases() -> None:
    """A drop-in is read after its unit; a name in Alias= means the unit."""
    conversion = converted(
        "systemd",
        [
            SourceFile("a.service.d/x.conf", "[Service]\nUMask=0077\n"),
            SourceFile("a.service", SERVICE + "[Install]\nAlias=other.service\n"),
            SourceFile("b.service", "[Unit]\nRequires=other.service\n" + SERVICE),
        ],
    )
    units = loaded(conversion).unit_set.units
    assert units["a"].service is not None and units["a"].service.context.umask == 0o077
    assert [each.unit for each in units["b"].requires] == ["a"]


def test_names_that_are_none_of_ours_are_mapped() -> None:
    """A name with an escape is written otherwise, and that is said; %n still is what it was."""
    conversion = converted("systemd", [SourceFile(r"a\x2db.service", "[Service]\nExecStart=/bin/echo %n\n")])
    (unit,) = loaded(conversion).unit_set.units.values()
    assert unit.name == "a-b" and unit.service is not None
    assert unit.service.exec_start[0].words[1] == r"a\x2db.service"
    assert [use.reason for use in conversion.ledger.notes] == [r"the unit a\x2db.service is called a-b here"]


def test_a_service_and_a_target_of_one_name() -> None:
    """The service has the name, the target keeps its suffix."""
    conversion = converted(
        "systemd", [SourceFile("a.target", "[Unit]\nWants=a.service\n"), SourceFile("a.service", SERVICE)]
    )
    units = loaded(conversion).unit_set.units
    assert set(units) == {"a", "a.target"} and [each.unit for each in units["a.target"].wants] == ["a"]


def test_permissions_start_only() -> None:
    """Only the main command runs as the user then."""
    conversion = converted(
        "systemd",
        [
            SourceFile(
                "a.service",
                "[Service]\nUser=nobody\nPermissionsStartOnly=yes\nExecStartPre=-/bin/a\nExecStart=/bin/b\n",
            )
        ],
    )
    (unit,) = loaded(conversion).unit_set.units.values()
    assert unit.service is not None
    assert unit.service.exec_start_pre[0].privileged and unit.service.exec_start_pre[0].ignore_failure
    assert not unit.service.exec_start[0].privileged


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Description=1\\\n2\\\n3\n", "1 2 3"),
        ("Description=1\\\n#hogehoge\\\n2\\\n3\n", "1 2 3"),
        ("Description=1\\\n\n2\n", "1"),
        ("Description=a\\\n[Service]\n", "a [Service]"),
        (" Description = x y \n", "x y"),
        ("\ufeffDescription=x\\\\\n", "x\\\\"),
        ("Description=x\r\nDescription=y\\", "y"),
    ],
)
def test_lines(text: str, value: str) -> None:
    """Continuations, comments within them, blanks and ends of lines. Source: the answers of systemd 252."""
    assignments, _ = parse_unit_file(f"[Unit]\n{text.removeprefix(chr(0xFEFF))}", "a.service")
    assert assignments[-1].value == value


def test_a_broken_header_is_refused() -> None:
    """systemd refuses the whole file, so there is nothing to convert."""
    with pytest.raises(ConvertError, match=r"a\.service:1"):
        converted("systemd", [SourceFile("a.service", "[Unit\nDescription=x\n")])


def test_the_instance_of_a_connection_was_lost_and_nobody_said_so() -> None:
    """What has %i in it means something else: the text of all connections is one."""
    service = "[Service]\nExecStart=/bin/echo %i\nSyslogIdentifier=all%%i\n"
    socket = "[Socket]\nListenStream=/run/a\nAccept=yes\n"
    lost = lost_of(converted("systemd", [SourceFile("a@.service", service), SourceFile("a.socket", socket)]))
    assert [key for _, key, reason in lost if "%i is empty" in reason] == ["ExecStart"]


def test_a_socket_that_accepts_belongs_to_a_plain_unit() -> None:
    """An instance for each connection is made of the unit that listens; its name is not that of the plain service."""
    conversion = convert(
        "systemd",
        [
            SourceFile("ftp.socket", "[Socket]\nListenStream=21\nAccept=yes\n[Install]\nWantedBy=sockets.target\n"),
            SourceFile("ftp@.service", "[Service]\nExecStart=-/usr/sbin/in.ftpd %p %i\nStandardInput=socket\n"),
            SourceFile("ftp.service", SERVICE),
        ],
        around(),
    )
    draft = conversion.drafts["ftp.socket"]
    assert draft.tables["socket", 0] == {
        "name": "connection",
        "trigger-limit-burst": 200,
        "listen-stream": ["21"],
        "accept": True,
    }
    assert draft.get("service", "exec-start") == "-/usr/sbin/in.ftpd ftp %i"
    assert draft.get("unit", "enabled") is None and draft.get("service", "activation") is None
    assert set(conversion.drafts) == {"ftp", "ftp.socket"}


def test_a_timer_without_a_time_is_told() -> None:
    """systemd refuses it, and so it is lost with all that it says."""
    conversion = converted(
        "systemd", [SourceFile("a.service", SERVICE), SourceFile("a.timer", "[Timer]\nOnBootSec=1\nOnBootSec=\n")]
    )
    assert {reason for _, _, reason in lost_of(conversion)} == {"a timer without a time, which systemd refuses"}
    assert loaded(conversion).unit_set.units["a"].timer is None


@pytest.mark.parametrize(
    ("lines", "kept", "told"),
    [
        (
            "RestrictNamespaces=mnt pid\nRestrictNamespaces=~mnt usr",
            'restrict-namespaces = ["mnt pid", "~mnt"]',
            ["'usr' is not a kind of namespace"],
        ),
        ("RestrictNamespaces=usr", "", ["'usr' is not a kind of namespace"]),
        (
            "CapabilityBoundingSet=~CAP_CHOWN CAP_FLY CAP_KILL",
            'capability-bounding-set = "~CAP_CHOWN CAP_KILL"',
            ["there is no capability 'CAP_FLY'"],
        ),
        (
            "SystemCallFilter=@system-service @magic\nSystemCallFilter=~@privileged",
            'system-call-filter = ["@system-service", "~@privileged"]',
            ["there is no group '@magic' of system calls"],
        ),
        (
            "RestrictAddressFamilies=AF_UNIX AF_NEW",
            'restrict-address-families = "AF_UNIX"',
            ["'AF_NEW' is not an address family"],
        ),
        (
            "ReadOnlyPaths=/etc here -/a/../b",
            'read-only-paths = "/etc"',
            ["'here' is not an absolute path; '/a/../b' is not an absolute path"],
        ),
        ("BindPaths=/a:/b:odd /c", 'bind-paths = "/c"', ["'/a:/b:odd' is not a bind"]),
    ],
)
def test_a_word_that_is_not_known_does_not_take_the_others_with_it(lines: str, kept: str, told: list[str]) -> None:
    """What is known of a list holds, and the rest is told."""
    text = f"{SERVICE}{lines}\n"
    table = text_of("systemd", text, "a.service").partition("[sandbox]\n")[2].splitlines()
    assert set(table) - {'keyring-mode = "private"', 'enforce = "best-effort"'} == ({kept} if kept else set())
    conversion = converted("systemd", [SourceFile("a.service", text)])
    assert [reason for _, _, reason in lost_of(conversion)] == told


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ("StandardInputText=a\\tb %n\nStandardInputData=AP8=", [r'standard-input-text = "a\tb %n.service"',
                                                             'standard-input-data = "AP8="']),
        ("StandardInputText=gone\nStandardInputText=\nStandardInputText=a\\nb", ['standard-input-text = ["a", "b"]']),
        ("StandardInputData=NTAlCg==\nStandardInputText=%n", ['standard-input-text = ["50%%", "%n.service"]']),
        ("StandardInputData=AP8=\nStandardInputText=x", ['standard-input-data = "AP94Cg=="']),
        ("StandardInputData=AP8=\nStandardInputText=%n", []),
    ],
)  # fmt: skip
def test_what_a_service_reads_keeps_its_order(lines: str, wanted: list[str]) -> None:
    """Lines come before bytes here: what was said in another order is written as one or the other, or told."""
    text = f"{SERVICE}{lines}\n"
    made = [line for line in text_of("systemd", text, "a.service").splitlines() if line.startswith("standard-input")]
    assert made == wanted
    assert bool(lost_of(converted("systemd", [SourceFile("a.service", text)]))) is not bool(wanted)


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ("RootDirectory=/srv/a", "mount-apivfs = true"),
        ("RootDirectory=/srv/a\nMountAPIVFS=no", "mount-apivfs = false"),
        ("MountAPIVFS=yes", ""),
    ],
)
def test_another_root_has_the_kernels_interfaces_as_in_systemd(lines: str, wanted: str) -> None:
    """They are there unless MountAPIVFS= says no; without another root it says nothing."""
    text = text_of("systemd", f"{SERVICE}{lines}\n", "a.service")
    assert [line for line in text.splitlines() if line.startswith("mount-apivfs")] == ([wanted] if wanted else [])


def test_what_else_a_unit_requires_went_with_a_unit_that_could_not_be_made() -> None:
    """One of several in a key goes, of a template too, and the line that named it is told."""
    needs = "[Unit]\nRequires=gone.service here.service\nRequires=here.service\n[Service]\nExecStart=/bin/true\n"
    files = {"a.service": needs, "t@.service": needs, "gone.service": "[Service]\nUser=root\n"}
    files["here.service"] = "[Service]\nExecStart=/bin/true\n"
    conversion = converted("systemd", [SourceFile(name, text) for name, text in files.items()])
    for name in ("a", "t@"):
        assert conversion.drafts[name].get("unit", "requires") == [{"unit": "here", "ordered": False}]
    told = [(each.place.file, each.place.line, each.reason) for each in conversion.not_carried]
    assert [each for each in told if each[0] != "gone.service"] == [
        ("a.service", 2, "there is no unit gone"),
        ("t@.service", 2, "there is no unit gone"),
    ]


@pytest.mark.parametrize(
    ("lines", "key", "wanted"),
    [
        (r"SetCredential=a:x\n50%n\x41", "set-credential", "a:x\n50%%nA"),
        ("StandardInput=socket\nStandardOutput=socket\nStandardError=socket", "standard-output", None),
        ("StandardOutput=null\nStandardError=journal", "standard-error", "journal"),
    ],
)
def test_a_value_that_came_out_as_another(lines: str, key: str, wanted: str | None) -> None:
    """The value of a credential has escapes and no specifiers; that output goes to the connection was told as lost; the
    error output went to the system's journal, without which the unit did not start.
    """
    files = [SourceFile("a@.service", f"[Service]\nExecStart=/bin/a\n{lines}\n")]
    files += [SourceFile("a.socket", "[Socket]\nListenStream=1\nAccept=yes\n")] if "socket" in lines else []
    conversion = converted("systemd", files)
    assert [use.reason for use in conversion.not_carried] == []
    (draft,) = conversion.drafts.values()
    assert draft.get("service", key) == ([wanted] if key == "set-credential" else wanted)
