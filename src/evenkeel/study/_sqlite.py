"""Opening the store's SQLite file: to write, with the journal that its file system can carry, and to read."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from evenkeel.errors import StoreError

__all__ = ["Opened", "close_writer", "keep_journal", "open_reader", "open_writer"]

_MOUNTS = Path("/proc/self/mountinfo")
# A write-ahead log needs memory that all its processes share, which these do not give between machines.
_NETWORK = {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
_NETWORK |= {"ocfs2", "orangefs", "panfs", "smb3", "smbfs", "virtiofs", "vboxsf"}
_BUSY_SECONDS = 30.0
_LONGEST_VALUE = 100_000_000  # bytes of one value; SQLite's own limit is ten times as much


class Opened(NamedTuple):
    """A connection, and what must live as long as it does."""

    connection: sqlite3.Connection
    scratch: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """Close the connection and what came with it."""
        self.connection.close()
        if self.scratch is not None:
            self.scratch.cleanup()


def open_writer(path: Path) -> Opened:
    """Open the file to write, and make it if it is new.

    Args:
        path: the file.

    Returns:
        The connection; nothing is written yet.
    """
    return Opened(_guarded(sqlite3.connect(path, timeout=_BUSY_SECONDS)))


def keep_journal(opened: Opened, path: Path) -> str:
    """Choose the journal that the file system can carry.

    Args:
        opened: a connection to write.
        path: its file.

    Returns:
        ``"wal"``, a write-ahead log, which readers do not wait for; ``"delete"``, a rollback journal.
    """
    wanted = "DELETE" if file_system(path) in _NETWORK else "WAL"
    with suppress(sqlite3.OperationalError):  # where it cannot, SQLite stays with the rollback journal
        opened.connection.execute(f"PRAGMA journal_mode = {wanted}").fetchone()
    return str(opened.connection.execute("PRAGMA journal_mode").fetchone()[0])


def close_writer(opened: Opened) -> None:
    """Leave one file behind, which can be copied and read where nothing can be written; unless somebody reads now."""
    with suppress(sqlite3.Error):
        opened.connection.execute("PRAGMA busy_timeout = 100")
        opened.connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    opened.close()


def open_reader(path: Path) -> Opened:
    """Open the file to read; neither it nor its folder is written.

    Args:
        path: the file.

    Returns:
        The connection; to a copy, where the write-ahead log of a driver cannot be read in its place.

    Raises:
        StoreError: if a driver was cut off in the middle of a write, on a file system without a write-ahead log.
    """
    place = quote(str(path.absolute()))
    try:
        connection = _guarded(sqlite3.connect(f"file:{place}?mode=ro", uri=True, timeout=_BUSY_SECONDS))
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return Opened(connection)
    except sqlite3.OperationalError:
        journal = path.with_name(f"{path.name}-journal")
        if journal.exists() and journal.stat().st_size:
            raise StoreError(
                f"the study's store '{path}' was being written when its driver was cut off; start the same command "
                "again, which mends it, or wait for the driver"
            ) from None
    scratch = tempfile.TemporaryDirectory(prefix="evenkeel-")
    for suffix in ("", "-wal"):
        source = path.with_name(f"{path.name}{suffix}")
        if source.is_file():
            shutil.copyfile(source, Path(scratch.name) / f"copy{suffix}")
    return Opened(_guarded(sqlite3.connect(Path(scratch.name) / "copy")), scratch)


def file_system(path: Path) -> str:
    """Return the type of the file system that a file is, or will be, on; empty where nobody says."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    found, longest = "", -1
    for line in lines:
        fields = line.split()
        mount, kind = fields[4].encode().decode("unicode_escape"), fields[fields.index("-") + 1]
        if path.absolute().resolve().is_relative_to(mount) and len(mount) >= longest:
            found, longest = kind, len(mount)
    return found


def _guarded(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Trust nothing that the file says of itself: it may be a stranger's."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
    for setting in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
        connection.execute(f"PRAGMA {setting}")
    return connection
