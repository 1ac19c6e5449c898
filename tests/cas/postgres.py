"""A PostgreSQL server for tests: its own data, a socket that only this machine reaches, gone afterwards."""

from __future__ import annotations

import getpass
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

_counter = itertools.count()


def binaries() -> Path | None:
    """Where the server's programs lie: the newest version on PATH or where Debian puts them."""
    if found := shutil.which("pg_ctl"):
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: float(path.parts[-3]))
    return versions[-1].parent if versions else None


@dataclass
class PostgresServer:
    """One server. The user is the one that it runs as."""

    directory: Path
    programs: Path
    user: str

    def _do(self, *command: str) -> None:
        # The server refuses to run as root.
        drop = [] if os.getuid() else ["setpriv", f"--reuid={self.user}", "--clear-groups", "--"]
        done = subprocess.run(
            [*drop, str(self.programs / command[0]), *command[1:]],
            cwd=self.directory, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def make(self) -> None:
        self._do("initdb", "-D", "data", "-A", "trust", "-U", "cas", "-E", "UTF8", "--locale=C", "--no-sync")

    def start(self) -> None:
        options = f"-k {self.directory} -c listen_addresses='' -c max_wal_size=64MB"
        self._do("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._do("pg_ctl", "-D", "data", "-w", "-m", mode, "stop")

    def sql(self, statement: str, url: str = "") -> list[Any]:
        """What a statement answers, as anybody's who has the server."""
        with psycopg.connect(url or self._url(), autocommit=True) as connection:
            done = connection.execute(statement)
            return done.fetchall() if done.description else [done.rowcount]

    def schema(self) -> str:
        """The URL of tables that nobody else uses."""
        name = f"cas{next(_counter)}"
        self.sql(f"CREATE SCHEMA {name}")
        return self._url() + f"&options={quote(f'-csearch_path={name}')}"

    def _url(self) -> str:
        return f"postgresql://cas@/postgres?host={self.directory}"


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    programs = binaries()
    assert programs is not None
    directory = Path(tempfile.mkdtemp(prefix="strongroom-postgres-"))
    user = "nobody" if os.getuid() == 0 else getpass.getuser()
    if os.getuid() == 0:
        shutil.chown(directory, user)
    server = PostgresServer(directory, programs, user)
    try:
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
