"""A kernel and a Gramine that answer as the real ones do, for attesters and whoever uses them.

`FakeMachine` answers the system calls that attesters make (`strongroom.attest.tee.system.System`); its parts are the
trees that it has: `FakeTsm`, `FakeRtmrs`, `FakeGramine`, `FakeNsm`. What they sign comes from a function of the
caller's, or from `recorded` evidence of real hardware. So the attester under test is the one that ships, down to its
system calls:

    machine = FakeMachine(FakeTsm("sev_guest", recorded({report_data: (report, certificates)})))
    evidence = ConfigfsAttester(system=machine).evidence(report_data)

Each part says whose behaviour it copies. `fail` makes the next uses of a file fail as the platform would.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import struct
from collections.abc import Callable, Mapping

from strongroom.attest.parse.cbor import byte_string, parse_cbor
from strongroom.testing.machine import FakeFile, FakeMachine, Faults, failure

__all__ = ["FakeGramine", "FakeMachine", "FakeNsm", "FakeRtmrs", "FakeTsm", "Report", "recorded"]

Report = Callable[[bytes, int], tuple[bytes, bytes]]
"""From 64 bytes of input and a privilege level to a report and what comes with it; may raise `OSError`."""


def recorded(answers: Mapping[bytes, tuple[bytes, bytes]]) -> Report:
    """The platform that once gave those answers, by input; any other input is EIO."""

    def report(inblob: bytes, privlevel: int) -> tuple[bytes, bytes]:
        del privlevel
        if inblob not in answers:
            raise failure(errno.EIO)
        return answers[inblob]

    return report


class _Request:
    def __init__(self) -> None:
        self.inblob = b""
        self.privlevel = 0
        self.written = 0
        self.read = 0
        self.answer: tuple[bytes, bytes] | None = None


class FakeTsm(Faults):
    """`/sys/kernel/config/tsm/report`, as drivers/virt/coco/guest/report.c and fs/configfs/file.c of Linux have it.

    `requests` are its directories. `provider` may be None: configfs-tsm is there, and nobody answers.
    """

    root = "/sys/kernel/config/tsm/report"

    def __init__(self, provider: str | None, report: Report, *, privlevel_floor: int = 0) -> None:
        super().__init__()
        self.provider = provider
        self.privlevel_floor = privlevel_floor
        self.requests: dict[str, _Request] = {}
        self.answered = 0
        self._report = report

    def mkdir(self, name: str) -> None:
        self._use("mkdir")
        if "/" in name:
            raise failure(errno.EPERM if name.split("/")[0] in self.requests else errno.ENOENT)
        if self.provider is None:
            raise failure(errno.ENXIO)
        if name in self.requests:
            raise failure(errno.EEXIST)
        self.requests[name] = _Request()

    def rmdir(self, name: str) -> None:
        self._use("rmdir")
        if name not in self.requests:
            raise failure(errno.ENOENT)
        del self.requests[name]

    def open(self, name: str, flags: int) -> FakeFile:
        directory, _, file = name.partition("/")
        request = self.requests.get(directory)
        if request is None or file not in self._files():
            raise failure(errno.ENOENT)
        loads: dict[str, Callable[[], bytes]] = {
            "provider": lambda: f"{self._provider()}\n".encode(),
            "generation": lambda: f"{request.written}\n".encode(),
            "privlevel_floor": lambda: f"{self.privlevel_floor}\n".encode(),
            "outblob": lambda: self._made(request)[0],
            "auxblob": lambda: self._made(request)[1],
        }
        saves: dict[str, Callable[[bytes], None]] = {
            "privlevel": lambda data: self._set_privlevel(request, data),
            "inblob": lambda data: self.write(directory, data),
        }

        def load() -> bytes:
            self._use(file)
            if self.requests.get(directory) is not request:
                raise failure(errno.ENOENT)
            return loads[file]()

        def save(data: bytes) -> None:
            self._use(file)
            if self.requests.get(directory) is not request:
                raise failure(errno.ENOENT)
            saves[file](data)

        return FakeFile(
            flags,
            load if file in loads else None,
            save if file in saves else None,
            at_close=file == "inblob",
            limit=64,
        )

    def write(self, directory: str, inblob: bytes) -> None:
        """What closing `inblob` does; also for a test to play another program."""
        request = self.requests[directory]
        self._advance(request)
        request.inblob = inblob

    def _files(self) -> tuple[str, ...]:
        common = ("provider", "generation", "inblob", "outblob")
        return (*common, "auxblob", "privlevel", "privlevel_floor") if self.provider == "sev_guest" else common

    def _provider(self) -> str:
        if self.provider is None:
            raise failure(errno.ENXIO)
        return self.provider

    def _set_privlevel(self, request: _Request, data: bytes) -> None:
        try:
            level = int(data.decode())
        except ValueError:
            raise failure(errno.EINVAL) from None
        if not self.privlevel_floor <= level <= 3:
            raise failure(errno.EINVAL)
        self._advance(request)
        request.privlevel = level

    def _advance(self, request: _Request) -> None:
        if request.written == (request.read - 1) % 2**64:
            raise failure(errno.EBUSY)
        request.written += 1

    def _made(self, request: _Request) -> tuple[bytes, bytes]:
        if not request.inblob:
            raise failure(errno.EINVAL)
        if request.answer is not None and request.read == request.written:
            return request.answer
        self._provider()
        if len(request.inblob) != 64:
            raise failure(errno.EINVAL)
        request.answer = None
        request.answer = self._report(request.inblob, request.privlevel)
        request.read = request.written
        self.answered += 1
        return request.answer


class FakeRtmrs(Faults):
    """RTMR0 to 3 of a TDX guest, as drivers/virt/coco/guest/tsm-mr.c of Linux has them."""

    root = "/sys/devices/virtual/misc/tdx_guest/measurements"

    def __init__(self) -> None:
        super().__init__()
        self.values = [bytes(48)] * 4

    def open(self, name: str, flags: int) -> FakeFile:
        names = [f"rtmr{index}:sha384" for index in range(4)]
        if name not in names:
            raise failure(errno.ENOENT)
        index = names.index(name)

        def load() -> bytes:
            self._use(name)
            return self.values[index]

        def save(data: bytes) -> None:
            self._use(name)
            self.extend(index, data)

        return FakeFile(flags, load, save)

    def extend(self, index: int, data: bytes) -> None:
        """What a write does; also for a test to play another program."""
        if len(data) != 48:
            raise failure(errno.EINVAL)
        self.values[index] = hashlib.sha384(self.values[index] + data).digest()

    def mkdir(self, name: str) -> None:
        raise failure(errno.EPERM)

    def rmdir(self, name: str) -> None:
        raise failure(errno.EPERM)


class FakeGramine(Faults):
    """`/dev/attestation`, as libos/src/fs/dev/attestation.c of Gramine has it.

    Args:
        quote: from 64 bytes of report data to a quote; may raise `OSError`, which Gramine turns into EACCES.
        attestation_type: ``dcap``, ``none``, or None outside of SGX, as under gramine-direct.
        keys: the names that the manifest's mounts have.
    """

    root = "/dev/attestation"

    def __init__(
        self, quote: Callable[[bytes], bytes], *, attestation_type: str | None = "dcap", keys: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.attestation_type = attestation_type
        self.keys: dict[str, bytes] = dict.fromkeys(keys, b"")
        self.user_report_data = bytes(64)
        self._quote = quote

    def open(self, name: str, flags: int) -> FakeFile:
        self._use(name)
        if name.startswith("keys/"):
            return self._key(name.removeprefix("keys/"), flags)
        if self.attestation_type is None:
            raise failure(errno.ENOENT)
        if name == "attestation_type":
            return FakeFile(flags, self.attestation_type.encode)
        if name == "user_report_data":
            return FakeFile(flags, bytes, self._save)
        if name == "quote" and self.attestation_type != "none":
            return self._quoted(flags)
        raise failure(errno.ENOENT)

    def _save(self, data: bytes) -> None:
        self.user_report_data = data[:64].ljust(64, b"\0")

    def _quoted(self, flags: int) -> FakeFile:
        # The quote is made when the file is opened.
        try:
            quote = self._quote(self.user_report_data)
        except OSError:
            raise failure(errno.EACCES) from None
        return FakeFile(flags, lambda: quote)

    def _key(self, name: str, flags: int) -> FakeFile:
        if name not in self.keys:
            raise failure(errno.ENOENT)

        def save(data: bytes) -> None:
            if len(data) != 16:
                raise failure(errno.EACCES)
            self.keys[name] = data

        return FakeFile(flags, lambda: self.keys[name], save)

    def mkdir(self, name: str) -> None:
        raise failure(errno.EACCES)

    def rmdir(self, name: str) -> None:
        raise failure(errno.EACCES)


class FakeNsm(Faults):
    """`/dev/nsm`, as drivers/misc/nsm.c of Linux has it; `ioctl` takes the place of `fcntl.ioctl`.

    Args:
        document: from user data to a document, as the module would sign it.
    """

    root = "/dev"

    def __init__(self, document: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._document = document
        self.answer: bytes | None = None
        """What the module answers, if not a document."""

    def open(self, name: str, flags: int) -> FakeFile:
        if name != "nsm":
            raise failure(errno.ENOENT)
        self._use("open")
        return FakeFile(flags, bytes, lambda data: None)

    def ioctl(self, fd: int, number: int, raw: bytearray) -> int:
        """One request: `raw` is `struct nsm_raw`, and points to buffers of this process."""
        del fd
        self._use("ioctl")
        if number != 0xC0200A00 or len(raw) != 32:
            raise failure(errno.EINVAL)
        request, length, response, capacity = struct.unpack("<4Q", raw)
        if length > 0x1000:
            raise failure(errno.EMSGSIZE)
        answer = self._answer(ctypes.string_at(request, length))[:capacity]
        ctypes.memmove(response, answer, len(answer))
        struct.pack_into("<Q", raw, 24, len(answer))
        return 0

    def _answer(self, request: bytes) -> bytes:
        if self.answer is not None:
            return self.answer
        match parse_cbor(request, "request"):
            case {"Attestation": {"user_data": bytes() as data, "nonce": None, "public_key": None}}:
                return b"\xa1\x6bAttestation\xa1\x68document" + byte_string(self._document(data))
        return b"\xa1\x65Error\x70InvalidOperation"

    def mkdir(self, name: str) -> None:
        raise failure(errno.EPERM)

    def rmdir(self, name: str) -> None:
        raise failure(errno.EPERM)
