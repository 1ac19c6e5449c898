"""What a policy says that runs and what it is given: the program, secrets, and files written before it starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from strongroom.cas.policy.places import check_path, read_source
from strongroom.cas.policy.rights import WORD
from strongroom.cas.policy.table import FINGERPRINT, MAX_DOCUMENT, Table, number
from strongroom.cas.policy.templates import as_template

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,126}")
TOOL = re.compile(r"[A-Za-z0-9_+\[.][A-Za-z0-9_.+\[-]{0,127}|(/(?!\.\.?(/|$))[^/\x00-\x1f\x7f]+)+")
MODE = re.compile(r"0[0-7]{3}")

# What the launcher sets itself, and what makes a program load code or write its keys where the host says so: a policy
# may not set these.
RESERVED = re.compile(
    r"LD_.*|GLIBC_TUNABLES|GCONV_PATH|LOCPATH|PYTHON.*|STRONGROOM_.*|OPENSSL_.*|SSLKEYLOGFILE|BASH_ENV|ENV|IFS"
    r"|PATH|HOME|TMPDIR"
)

HARMLESS = ("PYTHONUNBUFFERED", "PYTHONHASHSEED")


@dataclass(frozen=True)
class SecretRule:
    """A secret of the policy's.

    Attributes:
        environment: the program's variable that gets it; empty for none.
        generate: how many bytes the CAS draws on first use; None for a secret that is stored.
        deposited: an enclave of this policy writes it.
        source: the policy whose secret of this name it is; empty for this policy's own.
    """

    name: str
    environment: str = ""
    generate: int | None = None
    deposited: bool = False
    source: str = ""


@dataclass(frozen=True)
class FileRule:
    """A file that is written into the enclave's private memory before the program starts; `content` is a template."""

    path: str
    content: str
    mode: int = 0o400


@dataclass(frozen=True)
class Program:
    """What runs: a command, the files it consists of (relative to the document) and its environment.

    The command's strings and the environment's values are templates (`strongroom.cas.policy.templates`). With an
    `image`, the digest of a container image that is the program's root, the command is what its entry point gets in
    place of its own arguments; empty for these.

    Attributes:
        tools: the system's programs that it may start, by names or absolute paths; None for any, unmeasured.
    """

    command: tuple[str, ...]
    files: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    tools: tuple[str, ...] | None = None

    @classmethod
    def literal(
        cls,
        command: Iterable[str],
        files: Iterable[str],
        environment: Mapping[str, str] | None = None,
        image: str = "",
        tools: Iterable[str] | None = None,
    ) -> Program:
        """The program of these words and variables as they are, whatever they contain."""
        variables = {name: as_template(value) for name, value in (environment or {}).items()}
        started = None if tools is None else tuple(tools)
        return cls(tuple(map(as_template, command)), tuple(files), variables, image, started)


def read_program(table: Table) -> Program:
    """The table `[program]`."""
    environment = table.optional_table("environment")
    values = dict(environment.value) if environment else {}
    for name, value in values.items():
        _check_variable(table, name, "environment", name)
        if not isinstance(value, str) or "\0" in value:
            table.refuse(f"program.environment.{name[:80]}: wanted a string", "environment", name)
    files = table.strings("files", default=())
    for name in files:
        if not name or name.startswith("/") or ".." in name.split("/"):
            table.refuse(f"program.files: got {name[:80]!r}, wanted a path below the document's directory", "files")
    image = ""
    if "image" in table.value:
        image = table.match("image", FINGERPRINT, "the digest of a container image, sha256:...")
    else:
        table.take("image", None)
    said = "command" in table.value or not image
    command = table.strings("command") if said else table.take("command", ())
    if said and not "".join(command[:1]):
        table.refuse("program.command: starts with an empty string, wanted a program", "command")
    tools = None
    if "tools" in table.value:
        tools = table.words("tools", TOOL, "a program's name, or an absolute path", ())
        if image:
            table.refuse("program.tools: an image is measured as a whole, wanted none", "tools")
    table.finish()
    variables = {name: value for name, value in values.items() if isinstance(value, str)}
    return Program(command, files, variables, image, tools)


def read_secret(table: Table) -> SecretRule:
    """A table of `[[secrets]]`."""
    name = table.match("name", WORD, "a word")
    environment = table.text("environment", default="")
    if "environment" in table.value:
        _check_variable(table, environment, "environment")
    generate = table.take("generate", None)
    if generate is not None and (type(generate) is not int or not 16 <= generate <= 1024):
        table.refuse(f"secrets.generate: got {number(generate)}, wanted 16 to 1024 bytes", "generate")
    rule = SecretRule(name, environment, generate, table.flag("deposited", default=False), read_source(table))
    if rule.deposited and generate is not None:
        table.refuse("secrets.generate: what an enclave deposits is not drawn by the CAS, wanted none", "generate")
    if rule.source:
        for key, said in (("generate", generate is not None), ("deposited", rule.deposited)):
            if said:
                table.refuse(f"secrets.{key}: what is imported is as {rule.source[:80]!r} has it, wanted none", key)
    table.finish()
    return rule


def read_file(table: Table) -> FileRule:
    """A table of `[[files]]`."""
    path = table.text("path")
    if "path" in table.value:
        check_path(table, "path", path)
    content = table.text("content", limit=MAX_DOCUMENT)
    if "\0" in content:
        table.refuse("files.content: holds a NUL character, wanted text", "content")
    mode = table.match("mode", MODE, "a file's mode as 0400 is", default="0400")
    table.finish()
    return FileRule(path, content, int(mode, 8) if MODE.fullmatch(mode) else 0)


def _check_variable(table: Table, name: str, *at: str) -> None:
    where = f"{table.path}.environment"
    if not VARIABLE.fullmatch(name):
        table.refuse(f"{where}: {name[:80]!r} is not the name of an environment variable", *at)
    elif RESERVED.fullmatch(name) and name not in HARMLESS:
        table.refuse(f"{where}: {name} may not be set by a policy", *at)
