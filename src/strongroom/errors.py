"""Every error that Strongroom raises on purpose, in one tree.

::

    StrongroomError                      1   internal
    ├── UsageError                       2   usage
    ├── MissingDependencyError           3   missing-dependency
    ├── FormatError                     10   format
    │   ├── PolicyError                 11   policy
    │   │   └── NotStoredError          13   not-stored
    │   └── ModelFormatError            12   model-format
    ├── IntegrityError                  20   integrity
    │   ├── WrongKeyError               21   wrong-key
    │   ├── TruncatedError              22   truncated
    │   ├── TamperedError               23   tampered
    │   └── RollbackError               24   rollback
    ├── LockedError                     25   locked
    ├── AttestationError                30   attestation
    │   ├── VerificationError           31   verification
    │   ├── DebugEnclaveError           32   debug-enclave
    │   ├── SimulatedEnclaveError       33   simulated-enclave
    │   ├── BindingError                34   binding
    │   ├── MeasurementError            35   measurement
    │   ├── TcbError                    36   tcb
    │   ├── ExpiredError                37   expired
    │   └── RevokedError                38   revoked
    ├── CasError                        40   cas
    │   ├── UnknownPolicyError          41   unknown-policy
    │   ├── UnauthorizedError           42   unauthorized
    │   │   └── GrantError              48   grant
    │   ├── ConflictError               43   conflict
    │   ├── CasUnreachableError         44   cas-unreachable
    │   ├── DatabaseError               45   database
    │   ├── NotReadyError               46   not-ready
    │   ├── TooManyRequestsError        47   too-many-requests
    │   └── InstanceLimitError          49   instance-limit
    ├── ChannelError                    50   channel
    │   ├── PeerIdentityError           51   peer-identity
    │   └── PortInUseError              52   port-in-use
    ├── EnclaveError                    60   enclave
    │   └── UnsupportedPlatformError    61   unsupported-platform
    ├── ServeError                      70   serve
    │   ├── UnansweredError             71   unanswered
    │   └── TooLargeError               72   too-large
    └── MpcError                        80   mpc
        ├── DivergedError               81   diverged
        └── RefusedError                82   refused

The number is the exit status of the command line, the word is the error's name on the wire, so that a refusal by a
distant service is raised here as the same class. A message says the field, what it got and what it wanted; the hint
says what to do. Neither ever holds a secret.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar


class StrongroomError(Exception):
    """The root of the tree.

    Args:
        message: one line, lower case, no full stop: field, got, wanted.
        hint: what the reader can do about it, one line; a note of the exception too, so that a traceback shows it.
    """

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self._hint = hint
        if hint:
            self.add_note(f"hint: {hint}")

    @property
    def hint(self) -> str | None:
        return self._hint

    @hint.setter
    def hint(self, hint: str | None) -> None:
        noted = f"hint: {self._hint}"
        self._hint = hint
        others = [note for note in getattr(self, "__notes__", []) if note != noted]
        self.__notes__ = [*others, *([f"hint: {hint}"] if hint else [])]

    def to_wire(self) -> dict[str, str]:
        """The error as the JSON object that every service of ours answers with."""
        wire = {"error": self.message, "code": self.code}
        if self.hint:
            wire["hint"] = self.hint
        return wire


class UsageError(StrongroomError):
    """An argument or a combination of arguments that makes no sense."""

    code, exit_code = "usage", 2


class MissingDependencyError(StrongroomError):
    """An optional package or program that this operation needs is not installed."""

    code, exit_code = "missing-dependency", 3


class FormatError(StrongroomError):
    """Bytes that do not parse as what they should be."""

    code, exit_code = "format", 10


class PolicyError(FormatError):
    """A policy document that is malformed or says something unsafe."""

    code, exit_code = "policy", 11


class NotStoredError(PolicyError):
    """What a policy names, a key or a secret, has not been given to the CAS yet."""

    code, exit_code = "not-stored", 13


class ModelFormatError(FormatError):
    """A model that is not ONNX, or not one that can be run."""

    code, exit_code = "model-format", 12


class IntegrityError(StrongroomError):
    """Sealed bytes that are not what their owner sealed."""

    code, exit_code = "integrity", 20


class WrongKeyError(IntegrityError):
    """The key is not the one that the file was sealed under."""

    code, exit_code = "wrong-key", 21


class TruncatedError(IntegrityError):
    """A sealed file is shorter than its root says."""

    code, exit_code = "truncated", 22


class TamperedError(IntegrityError):
    """Bytes fail authentication: somebody or something changed them."""

    code, exit_code = "tampered", 23


class RollbackError(IntegrityError):
    """An old, authentic version was offered in place of the latest."""

    code, exit_code = "rollback", 24


class LockedError(StrongroomError):
    """Somebody else is writing."""

    code, exit_code = "locked", 25


class AttestationError(StrongroomError):
    """Evidence that does not convince."""

    code, exit_code = "attestation", 30


class VerificationError(AttestationError):
    """A signature, a chain or an endorsement fails."""

    code, exit_code = "verification", 31


class DebugEnclaveError(AttestationError):
    """The enclave can be read by a debugger."""

    code, exit_code = "debug-enclave", 32


class SimulatedEnclaveError(AttestationError):
    """The enclave is simulated and the policy does not allow that vendor root."""

    code, exit_code = "simulated-enclave", 33


class BindingError(AttestationError):
    """The evidence is authentic but was made for another channel, nonce, kind or claims."""

    code, exit_code = "binding", 34


class MeasurementError(AttestationError):
    """What runs in the enclave is not what the policy names."""

    code, exit_code = "measurement", 35


class TcbError(AttestationError):
    """The platform's TCB is older, or weaker, than the policy wants."""

    code, exit_code = "tcb", 36


class ExpiredError(AttestationError):
    """Evidence, an endorsement, a certificate or an attestation result is out of its time."""

    code, exit_code = "expired", 37


class RevokedError(AttestationError):
    """The CAS has revoked an enclave's lease, its key or its measurement, or found out that there are copies of it."""

    code, exit_code = "revoked", 38


class CasError(StrongroomError):
    """The CAS refused or failed."""

    code, exit_code = "cas", 40


class UnknownPolicyError(CasError):
    """The CAS holds no policy of that name."""

    code, exit_code = "unknown-policy", 41


class UnauthorizedError(CasError):
    """The caller may not do that."""

    code, exit_code = "unauthorized", 42


class GrantError(UnauthorizedError):
    """What a policy imports is not granted to it, or not any more, or not to these enclaves."""

    code, exit_code = "grant", 48


class ConflictError(CasError):
    """The state is no longer the one that the request was made for."""

    code, exit_code = "conflict", 43


class CasUnreachableError(CasError):
    """Nothing answers at the CAS's address."""

    code, exit_code = "cas-unreachable", 44


class DatabaseError(CasError):
    """The CAS's database cannot be used now. Ask again: asking twice for the same does no harm."""

    code, exit_code = "database", 45


class NotReadyError(CasError):
    """The CAS runs, and serves nothing until somebody has confirmed or unsealed it."""

    code, exit_code = "not-ready", 46


class TooManyRequestsError(CasError):
    """The CAS is asked for too much at once by this address, or under this policy; later it answers.

    Attributes:
        seconds: when to ask again.
    """

    code, exit_code = "too-many-requests", 47
    seconds: int = 1


class InstanceLimitError(CasError):
    """As many enclaves live as the policy allows, or another is the replica that this one would be."""

    code, exit_code = "instance-limit", 49


class ChannelError(StrongroomError):
    """A connection failed, or its peer broke the protocol."""

    code, exit_code = "channel", 50


class PeerIdentityError(ChannelError):
    """The peer holds another key or certificate than the one expected."""

    code, exit_code = "peer-identity", 51


class PortInUseError(ChannelError):
    """The address to listen on is taken."""

    code, exit_code = "port-in-use", 52


class EnclaveError(StrongroomError):
    """An enclave could not be launched or booted."""

    code, exit_code = "enclave", 60


class UnsupportedPlatformError(EnclaveError):
    """This operating system or machine cannot do that."""

    code, exit_code = "unsupported-platform", 61


class ServeError(StrongroomError):
    """A model could not be served, or a prediction failed."""

    code, exit_code = "serve", 70


class UnansweredError(ServeError):
    """A service had no answer to a request in the time that it has."""

    code, exit_code = "unanswered", 71


class TooLargeError(ServeError):
    """A request is larger than what the model's plan has memory for."""

    code, exit_code = "too-large", 72


class MpcError(StrongroomError):
    """A computation on shares cannot go on; nothing of it may be tried again in the same epoch."""

    code, exit_code = "mpc", 80


class DivergedError(MpcError):
    """The parties of a computation on shares do not run the same program."""

    code, exit_code = "diverged", 81


class RefusedError(MpcError):
    """An owner's policy does not let a secret be revealed to whom the program would."""

    code, exit_code = "refused", 82


def _walk(root: type[StrongroomError]) -> Iterator[type[StrongroomError]]:
    yield root
    for child in root.__subclasses__():
        yield from _walk(child)


def from_wire(wire: Mapping[str, object]) -> StrongroomError:
    """The error that a service answered with, as the class it was raised as there.

    An unknown code becomes a plain `StrongroomError`; the message and hint are cut at 2,000 characters and lose their
    control characters, since they come from outside and end on a terminal.
    """
    code = wire.get("code")
    kind = next((c for c in _walk(StrongroomError) if c.code == code), StrongroomError)
    hint = wire.get("hint")
    return kind(printable(wire.get("error", "unknown error")), hint=printable(hint) if hint else None)


def printable(text: object) -> str:
    """`text` for a terminal: at most 2,000 characters, control characters replaced by blanks.

    What is longer ends with how many characters are left out. What was made printable once stays as it is.
    """
    whole = str(text)
    kept = len(whole) if len(whole) <= 2000 else 1960
    left = f" ... {len(whole) - kept:,} more characters" if kept < len(whole) else ""
    return "".join(c if c.isprintable() else " " for c in whole[:kept]) + left
