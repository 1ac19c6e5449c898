"""Fuzz one parser, guided by what it covers: ``python -m tests.fuzz.harness PARSER [-runs=N] [-FLAG=VALUE...]``.

The flags are libFuzzer's; without ``-runs`` it goes on until it finds something or is stopped. An input breaks a rule
if its parser raises anything but an error of ours, if what was read does not write and read again alike, or if it takes
more than a second of processor time or a GiB of memory. It then is in a file, and belongs into ``corpus/PARSER``.

atheris instruments modules as they are imported, and libFuzzer ends the process; so each parser has its own.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import atheris

from tests.fuzz.mutate import mutate

with atheris.instrument_imports(include=["strongroom.attest", "strongroom.cas", "strongroom.crypto"]):
    from strongroom.errors import StrongroomError
    from tests.fuzz.parsers import PARSERS, seeds

SECONDS = 1.0
MEMORY = 1024  # MiB
HANG = 300  # seconds by the clock, which may be anybody's: processor time is what is limited


def main(name: str, flags: list[str]) -> None:
    check = PARSERS[name].check

    def one(raw: bytes) -> None:
        start = time.thread_time()
        with suppress(StrongroomError):
            check(raw)
        spent = time.thread_time() - start
        if spent > SECONDS:
            raise TimeoutError(f"{name}: {spent:.1f} s for {len(raw)} bytes")

    def mutated(raw: bytes, longest: int, seed: int) -> bytes:
        return mutate(raw, longest, seed, atheris.Mutate)

    with tempfile.TemporaryDirectory() as corpus:
        known = seeds(name)
        for index, seed in enumerate(known):
            Path(corpus, str(index)).write_bytes(seed)
        limits = [f"-max_len={max(map(len, known)) + 1024}", f"-rss_limit_mb={MEMORY}", f"-timeout={HANG}"]
        atheris.Setup([sys.argv[0], *limits, *flags, corpus], one, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
