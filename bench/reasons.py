"""Why a figure is more than four times that of the C loop, by its name: what was done about it, or what it is for; and
of the keeper's book.

Shares are of profiles by cProfile on processor time, strace and perf, of 2026-11-21, as root with control groups.
"""

_RESTART = (
    "By default it is the pause before a restart, which is meant: a program that dies at once must not be started a"
    " thousand times a second. With restart-sec = 0 and as root most of it is one system call: the kernel waits for"
    " all processors before it moves a process into a control group, unless another was moved just before (3 to 17 ms"
    " on a busy machine on the way into the group, 0.02 ms on the way back). What the group gives, a stop that leaves"
    " nothing behind, is worth more than the milliseconds. A remedy that is left: `clone3` with CLONE_INTO_CGROUP does"
    " not wait, but nothing in Python calls it without copying the keeper, which costs a millisecond of processor time."
)
_START = (
    "Three programs start and import (`run`, keeper, manager: half a second). `run` reads and checks all unit files"
    " before anything is started, and the manager reads them again (0.16 s each for 1,000). Then every unit is six"
    " records in the journal, a state that survives the manager, a pipe for its output, a control group, and four"
    " lines in the keeper's book. Profile of the manager at 1,000 units: files 33 %, decisions 20 %, journal 14 %,"
    " spawn requests 7 %, commits 6 %, the rest asyncio and imports. Profile of the keeper: three quarters are the"
    " making of processes, in many small parts (request, limits, group, pipe, booking); the vfork itself is a tenth of"
    " it. Remedy: as root each process was made by a fork of the keeper that ran Python; now the keeper visits the"
    " control group and makes it by vfork (ADR 0008), which took the keeper from 2.5 to 1.2 s of processor time."
)
_CAPTURE = (
    "Here the C loop is programs that write into files themselves; what is between costs a copy. Half to three quarters"
    " of the manager's time are the kernel's copying of memory in splice (perf). A loop of reads and writes would lose"
    " what it holds when the manager is killed. With 1,000 units every unit writes only 256 kB, and a file is made at"
    " its first byte (a quiet unit has none), with one that tells its lives apart: opening them is a sixth of the time,"
    " Python a fifth; supervisor has made its files before the clock runs. Three quarters of that time were the bench's"
    " own doing once: ext4 looks at each inode that was freed in the last minutes before it gives one away, and the"
    " bench had just removed the folders of earlier runs (6 to 7 s/GB with that, 0.9 to 1.4 without; on tmpfs 0.9). It"
    " keeps them until its end now. A machine on which many small files are removed all the time pays that for every"
    " new file, ours or not. Remedies: pipes of busy units are enlarged to 256 KiB and no more to 1 MiB, for what waits"
    " in them is then still in a processor's cache (on a machine with 15 programs waiting: a fifth to a quarter less"
    " processor time; 64 KiB took half, but on a quiet machine as many looks as there are pieces of 64 KiB cost twice"
    " as much); and a look is one splice and no question whether anything is left."
)

REASONS: dict[str, str] = {
    "start_s": _START,
    "start_cpu_s": "The same work.",
    "stop_s": (
        "The C loop sends a signal and waits. We decide for each unit in the order of the dependencies, signal its"
        " whole tree (SIGTERM, SIGCONT), look for children that it left, empty its output pipe, remove its control"
        " group, and write to a disk who ended and how before we go. Profile of the keeper at 1,000 units: signals 27 %"
        " (most of it reading /proc for trees), letting go of what a unit held 14 %, the book 13 %, reaping 13 %."
        " Profile of the manager: decisions 40 %, journal 36 %. Remedy: all records of a batch were counted again for"
        " each event in it, which was 13 %."
    ),
    "memory_mb": (
        "30 MB are two interpreters with what they import; then 30 KB a unit: its files as they were read, for `show`,"
        " `apply` and the way back, and its state, as objects in the manager and as text in the keeper's custody, so"
        " that the manager may be killed."
    ),
    "restart_ms": _RESTART,
    "restart_max_ms": "The same.",
    "capture_mb_per_s": _CAPTURE,
    "capture_klines_per_s": "The same.",
    "book": (
        "for four lines: the manager's commit, the process, what was carried out, and the fact that it is there. Three"
        " quarters of it are their text as JSON, the rest is a `write` into a file that is never synced. It stays: a"
        " line held back to be written with others is one that the next `run` does not know of when the keeper is"
        " killed, and somebody would be started a second time."
    ),
}
