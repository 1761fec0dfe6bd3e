"""What ``run`` and ``check`` load before there is a supervisor: the unit files, and what lies in the hot directory.

The hot directory is looked at as the supervisor will look at it, with nothing left behind: no wheel is unpacked, and
nothing is remembered. What it would not take is a problem of that file, in its words.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace as replace_data

from msgspec.structs import replace

from supervisord_py.host.places import Places
from supervisord_py.host.unit_files import build, read_sources
from supervisord_py.model.problems import Problem
from supervisord_py.model.settings import Settings
from supervisord_py.model.unitset import LoadResult


def load_all(
    paths: Sequence[str] | None, places: Places, settings: Settings, environment: Mapping[str, str]
) -> LoadResult:
    """Read and build all units that a supervisor with these settings would begin with.

    Args:
        paths: Files and folders that were typed; None for the unit path.
        places: Where the unit path is, and what the supervisor remembers.
        settings: ``supervisord.toml``.
        environment: Of the supervisor: a key may be in it.
    """
    sources = read_sources(paths, places)
    own = settings.hot_directory
    if own.path is None:
        return build(sources, settings.limits)
    # All that takes is imported where there is a hot directory.
    from supervisord_py.host.hot_files import Rules, choose, look_at
    from supervisord_py.host.hot_memory import HotMemory, MemoryLostError, read_memory
    from supervisord_py.host.signing import Keyring, read_keyring

    folder, keys = os.path.normpath(own.path), own.keys or str(places.keys)
    keyring = read_keyring(keys, environment) if own.require_signature else Keyring()
    # What is still on its way is told, too: nobody looks again.
    look = replace(look_at(folder, Rules(own.require_signature, keyring, places.wheels), {}, 0), unsettled=frozenset())
    problems = [_problem(keys, text, is_error=False) for text in keyring.problems]
    if look.problem:
        problems.append(_problem(folder, look.problem, is_error=True))
    try:
        memory = read_memory(places.hot_versions)
    except MemoryLostError as error:
        problems.append(_problem(folder, str(error), is_error=True))
        memory = HotMemory()
    sites = {file.hot.site for each in look.candidates for file in each.files if file.hot is not None}
    _, files, loaded = choose(
        look, (), sources.files, memory, lambda hot: build(sources.with_hot(hot), settings.limits), unpacked=sites
    )
    # What is refused is listed as a bad unit; here it is told as well.
    problems += [file.problem for file in files if file.problem is not None]
    return replace_data(loaded, problems=tuple(_sorted([*loaded.problems, *problems])))


def _problem(file: str, message: str, *, is_error: bool) -> Problem:
    return Problem(file, 0, 0, "hot-directory", message, severity="error" if is_error else "warning")


def _sorted(problems: Sequence[Problem]) -> Iterator[Problem]:
    yield from sorted(problems, key=lambda problem: (problem.file, problem.line, problem.column))
