"""`strongroom VERB ...`, which prints what it does when: lines of the clock and what begins then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

print(time.time(), "import the launcher", flush=True)

from strongroom.cli import main as cli  # noqa: E402
from strongroom.cli.run import verb as run  # noqa: E402
from strongroom.enclave import control  # noqa: E402


def _say(what: str) -> None:
    print(time.time(), what, flush=True)


def _told(module: Any, name: str, what: str) -> None:
    real = getattr(module, name)

    @wraps(real)
    def told(*args: Any, **kwargs: Any) -> Any:
        _say(what)
        return real(*args, **kwargs)

    setattr(module, name, told)


_ASKED = {"config": "make a key", "dial": "connect to the CAS", "evidence": "make evidence, attest, receive keys"}
_EVENTS = {"attested": "raise the shields", "confined": "hand the program over", "running": "drop privileges, start"}


def _answered(real: Callable[[Any, dict[str, Any]], None]) -> Callable[[Any, dict[str, Any]], None]:
    seen: set[str] = set()

    def answer(self: Any, message: dict[str, Any]) -> None:
        what = _ASKED.get(str(message.get("op"))) or _EVENTS.get(str(message.get("event")))
        if what is not None and what not in seen:
            seen.add(what)
            _say(what)
        real(self, message)

    return answer


def main() -> int:
    _told(run, "_run_command", "start the development CAS")
    _told(run, "load_digests", "measure")
    _told(run, "apply_development_policy", "apply the policy, entrust keys")
    _told(run, "launch", "sandbox; boot imports")
    control.HostSide._answer = _answered(control.HostSide._answer)  # type: ignore[method-assign,assignment]
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
