"""`strongroom demo`: the whole story on real data, in front of your eyes."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from strongroom import vault
from strongroom.cas.client.address import CasAddress
from strongroom.cas.policy.version import Policy, Program, VaultRule
from strongroom.channel import bind
from strongroom.cli import output
from strongroom.cli.demo.mirror import killed_training
from strongroom.cli.demo.mpc import Answers, shared_prediction
from strongroom.cli.demo.parts import served_in_parts
from strongroom.cli.digits import Digits, load_digits
from strongroom.cli.examples import example
from strongroom.cli.run.verb import boot_config
from strongroom.cli.serve import start_service
from strongroom.cli.show import Show, refusal
from strongroom.cli.workspace import Home, SealedVault, apply_development_policy, entrust, policy_name, take_back
from strongroom.enclave.launch import Enclave, Isolation, launch
from strongroom.enclave.measure import measure
from strongroom.errors import EnclaveError, IntegrityError, MeasurementError, MissingDependencyError, StrongroomError
from strongroom.serve.client import Client
from strongroom.serve.stage import Stage

_EPOCH = re.compile(rb"epoch (\d+)/(\d+)")
_SCRIPT = "train_digits.py"
_SEARCHED_BYTES = 10**10  # about 3 s: of a large data set, every n-th image is searched for


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Takes about a minute. Leaves nothing behind, unless --keep says where."
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="a directory with MNIST (default: scikit-learn's digits)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new directory and leave it")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    isolation = Isolation.here()
    _require_packages()
    digits = load_digits(args.data)
    if args.keep is not None:
        args.keep.mkdir(parents=True)
    console = output.stderr if args.json else output.stdout
    show = Show(console)
    show.banner(
        "Strongroom",
        f"A data owner, a model and a client, on a machine that none of them trusts. Data: {digits.name}, "
        f"{len(digits.train_images):,} images to learn from, {len(digits.test_images):,} to test on.\n"
        f"{output.SIMULATED_BANNER[0].upper()}{output.SIMULATED_BANNER[1:]}.",
    )
    for line in isolation.notes:
        show.note(line)
    work = args.keep or Path(tempfile.mkdtemp(prefix="strongroom-demo-"))
    try:
        accuracy, parts, shares = _Story(show, work, digits, isolation, mnist=args.data is not None).tell()
    finally:
        if args.keep is None:
            shutil.rmtree(work, ignore_errors=True)
    show.closing(
        "The enclaves here were simulated: the steps are those of real hardware, the protection against this machine's "
        "owner is not. `strongroom doctor` says what this machine could offer."
    )
    if args.keep:
        output.note(f"everything is in {args.keep}")
    if args.json:
        total = round(sum(act.seconds for act in show.acts), 2)
        output.result(
            {
                "acts": [a.to_wire() for a in show.acts],
                "accuracy": accuracy,
                "parts": parts,
                "shares": shares,
                "seconds": total,
            }
        )
    return 0


class _Story:
    def __init__(self, show: Show, work: Path, digits: Digits, isolation: Isolation, *, mnist: bool) -> None:
        self.show, self.work, self.digits, self.isolation = show, work, digits, isolation
        self.home = Home.open(work / "home")
        self.data = SealedVault.at(work / "digits.vault")
        self.out = SealedVault.at(work / "model.vault")
        self.rules = (VaultRule("data", "/data", "read-only"), VaultRule("out", "/out", "read-write"))
        command = ["python", _SCRIPT, "--epochs", "1" if mnist else "20"]
        if isolation.sandbox == "process":
            command += ["--data", "{vault:data}", "--out", "{vault:out}"]
        self.script = Path(shutil.copy(example(_SCRIPT), work / _SCRIPT))
        # One thread: for images of 8 x 8 a second one waits more than it works.
        self.program = Program(tuple(command), (_SCRIPT,), {} if mnist else {"OMP_NUM_THREADS": "1"})

    def tell(self) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
        """All acts; accuracy of the served and of the plain model, what was seen of that in parts, and on shares."""
        with self.home.cas() as address:
            self._trust(address)
            self._seal()
            self._train(address)
            killed_training(self.show, "d", self.work)
            accuracy, answers = self._serve(address)
            parts = served_in_parts(self.show, "f", self.work, self.digits, self.home, address)
            shares = shared_prediction(self.show, "g", self.work, self.digits, self.out, answers)
            self._tamper()
        return accuracy, parts, shares

    def _trust(self, address: CasAddress) -> None:
        with self.show.act("a", "a configuration and attestation service starts, and gets a policy") as act:
            self.show.fact(f"CAS at {address.url}, known by its root key {_short(address.cas_root)}")
            self.name = policy_name("train-digits", [b"demo"])
            self.show.doing("measuring the interpreter, its packages and the script")
            self.config = boot_config(self.name, address, self.program, self.rules)
            measured = measure(self.config, {_SCRIPT: self.script})
            files = sum(part.files for part in measured.parts)
            size = sum(part.size for part in measured.parts)
            self.show.fact(f"measured {files:,} files, {size / 2**20:,.0f} MiB: {measured.value[:32]}...")
            owner, vendor = self.home.owner(), self.home.vendor()
            with self.home.owner_client(address, owner) as client:
                self.policy = apply_development_policy(
                    client,
                    name=self.name,
                    role="program",
                    owner=owner.public.fingerprint,
                    measurement=measured.value,
                    vendor_root=vendor.root_digest,
                    program=self.program,
                    vaults=self.rules,
                )
            self.show.fact(f"policy {self.policy.name}, signed by the data owner: that measurement, and no other")
            act.outcome = "the owner said which program may have the data"
            act.protected = "keys, from every program that is not exactly the one measured"

    def _seal(self) -> None:
        with self.show.act("b", "the data is sealed") as act:
            plain = self.work / "plain"
            plain.mkdir()
            np.savez(plain / "train.npz", images=self.digits.train_images, labels=self.digits.train_labels)
            with self.data.create() as opened:
                vault.pack(plain, opened)
                opened.commit()
            with self.out.create() as opened:
                opened.commit()
            content = (plain / "train.npz").read_bytes()
            shutil.rmtree(plain)
            self.show.doing("searching the disk for the plain data")
            searched, found = _plaintext_on_disk(self.data.path, content, self.digits)
            if found:
                raise IntegrityError(f"sealed data: {found} lies on the disk in clear")
            block = _largest(self.data.path).read_bytes()[-(1 << 15) :]
            at = content.find(self.digits.train_images[0].tobytes())
            self.show.fact(f"plain    {_hex(content[at + 8 : at + 28])}   {_entropy(content):.2f} bits a byte")
            self.show.fact(f"on disk  {_hex(block[:20])}   {_entropy(block):.2f} bits a byte")
            self.show.fact(
                f"searched the sealed files for {searched:,} of {len(self.digits.train_images):,} images, the file's "
                "name and its format: none is there"
            )
            act.outcome = f"{len(content):,} bytes sealed; the plain file is deleted; the disk holds ciphertext only"
            act.protected = "content and names of the data, from whoever reads the machine's disk"

    def _train(self, address: CasAddress) -> None:
        with self.show.act("c", f"{_SCRIPT}, an unmodified PyTorch script, trains in an enclave") as act:
            with self.home.owner_client(address) as client:
                entrust(client, self.policy, {"data": self.data, "out": self.out})
                self.show.doing("a tampered script tries first")
                tampered = self.work / "tampered" / _SCRIPT
                tampered.parent.mkdir()
                tampered.write_bytes(_one_byte_changed(self.script.read_bytes()))
                try:
                    self._run(address, tampered)
                except MeasurementError as error:
                    self.show.refused(f"the script with one byte changed: {refusal(error)}")
                    self.show.doing("launching the enclave")
                else:
                    raise EnclaveError("demo: a changed script got the keys")
                self._run(address, self.script)
                take_back(client, self.policy, "out", self.out)
            act.outcome = "the CAS appraised the evidence, released the keys, and the script wrote /out/model.onnx"
            act.protected = (
                "data and model, from whoever reads disk or network; keys, from a changed script"
                if self.isolation.sandbox == "bubblewrap"
                else "data and model, from whoever reads the disk (not from this user's other programs: no sandbox)"
            )

    def _run(self, address: CasAddress, script: Path) -> None:
        def on_event(name: str, detail: dict[str, Any]) -> None:
            if name == "attested":
                self.show.fact(f"evidence appraised; the CAS released the keys of: {', '.join(detail['vaults'])}")
                self.show.doing("importing PyTorch in the enclave")
            elif name == "vault":
                self.show.fact(f"{detail['mount']}: {detail['how']}")
            elif name == "sealed":
                self.show.fact(f"{', '.join(detail['files'])}: sealed into {self.out.path.name}")
            elif name == "notice":
                self.show.note(str(detail["text"]))

        with _streams(self.work / "training.log", self._on_line) as (stdout, stderr):
            enclave = launch(
                self.config,
                {_SCRIPT: script},
                cas=address,
                vendor=self.home.vendor(),
                vaults={"data": self.data.path, "out": self.out.path},
                on_event=on_event,
                stdout=stdout,
                stderr=stderr,
            )
            status = enclave.wait()
        if status:
            tail = (self.work / "training.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise EnclaveError(f"{_SCRIPT}: ended with status {status}: {' '.join(tail)[:300]}")

    def _on_line(self, line: bytes) -> None:
        if match := _EPOCH.match(line):
            epoch, epochs = int(match[1]), int(match[2])
            self.show.doing(f"training, epoch {epoch} of {epochs}", done=epoch / epochs)
            if epoch == epochs:
                self.show.fact(line.decode(errors="replace").strip())
                self.show.doing("exporting to ONNX")

    def _serve(self, address: CasAddress) -> tuple[dict[str, float], Answers]:
        with self.show.act("e", "the sealed model is served; a client appraises before it sends") as act:
            self.show.doing("launching the service's enclave")
            with bind("127.0.0.1", 0) as listener:
                url = f"https://127.0.0.1:{listener.getsockname()[1]}"
                policy, enclave, serving = start_service(
                    self.home, address, self.out, ["model.onnx"], listener=listener, quiet=True
                )
                try:
                    _wait_for(serving, enclave)
                    answers = self._ask(url, address, policy)
                finally:
                    enclave.stop()
            with self.out.open() as opened:
                plain = Stage.load(opened.read_bytes("model.onnx"), name="plain")
            name = plain.outputs[0].name
            logits = answers.logits
            expected = plain.infer({plain.inputs[0].name: self.digits.test_input()})[name]
            served, alone = (float((x.argmax(1) == self.digits.test_labels).mean()) for x in (logits, expected))
            if served != alone:
                raise StrongroomError(f"accuracy: {served:.4f} served, {alone:.4f} plain; wanted the same")
            right = int((logits.argmax(1) == self.digits.test_labels).sum())
            equal = "equal to the bit" if np.array_equal(logits, expected) else "the same decisions"
            self.show.fact(f"{right} of {len(logits)} test images right: accuracy {served:.2%} from the enclave")
            self.show.fact(f"accuracy {alone:.2%} from the plain model in ONNX Runtime: {equal}")
            act.outcome = f"{len(logits)} images predicted over TLS 1.3: {served:.2%} right, as with the plain model"
            act.protected = (
                "inputs, outputs and the model, from the machine that serves; sent only to what was appraised"
            )
        return {"served": served, "plain": alone}, answers

    def _ask(self, url: str, address: CasAddress, policy: Policy) -> Answers:
        with Client(url, cas_root=address.cas_root, policy=policy.name, reference=policy.reference) as client:
            service = client.appraise()
            self.show.fact(
                f"appraised the service: {service.result.tee} enclave {service.result.measurement[:16]}..., "
                f"its TLS key {_short(service.key)}"
            )
            images, answers = self.digits.test_input(), []
            client.predict(images[:1])
            begun = time.perf_counter()
            client.predict(images[:1])
            asked = time.perf_counter()
            for start in range(0, len(images), 256):
                self.show.doing("predicting the test set", done=start / len(images))
                answers.append(client.predict(images[start : start + 256])["logits"])
            return Answers(np.concatenate(answers), asked - begun, time.perf_counter() - asked)

    def _tamper(self) -> None:
        with self.show.act("h", "one bit of the sealed data is flipped") as act:
            largest = _largest(self.data.path)
            place = largest.stat().st_size // 2
            _flip(largest, place)
            self.show.fact(f"flipped bit 0 of byte {place:,} of {largest.name}")
            try:
                with self.data.open() as opened:
                    opened.verify()
            except IntegrityError as error:
                self.show.refused(refusal(error))
            else:
                raise IntegrityError("demo: a flipped bit went unseen")
            _flip(largest, place)
            with self.data.open() as opened:
                count = opened.verify()
            self.show.fact("flipped back: it verifies again" if count == 1 else f"flipped back: all {count} verify")
            act.outcome = "the change was found and the read refused"
            act.protected = "the data's integrity, from whoever can write to the disk"


def _require_packages() -> None:
    import importlib.util

    for package in ("torch", "onnx", "onnxscript", "onnxruntime", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(f"{package}: is not installed", hint="pip install 'strongroom[demo]'")


@contextmanager
def _streams(log: Path, on_line: Callable[[bytes], None]) -> Iterator[tuple[int, int]]:
    """Descriptors for a program's output: its lines go to `on_line`, its errors to a file."""
    read, write = os.pipe()

    def follow() -> None:
        with os.fdopen(read, "rb") as lines:
            for line in lines:
                on_line(line)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    with log.open("ab") as errors:
        try:
            yield write, errors.fileno()
        finally:
            os.close(write)
            reader.join()


def _wait_for(serving: threading.Event, enclave: Enclave) -> None:
    while not serving.wait(0.05):
        if not enclave.running:
            enclave.wait()
            raise EnclaveError("service: ended before it served")


def _largest(directory: Path) -> Path:
    return max((p for p in directory.iterdir() if p.is_file()), key=lambda p: p.stat().st_size)


def _plaintext_on_disk(directory: Path, content: bytes, digits: Digits) -> tuple[int, str | None]:
    """How many images were searched for in the sealed files, and what of the plain data was found, if anything."""
    sealed = b"\0".join(p.read_bytes() + p.name.encode() for p in directory.iterdir() if p.is_file())
    looked_for: Mapping[str, bytes] = {"the file's name": b"train.npz", "the format": content[:16]}
    for what, plain in looked_for.items():
        if plain in sealed:
            return 0, what
    images = digits.train_images
    step = max(1, len(images) * len(sealed) // _SEARCHED_BYTES)
    for number in range(0, len(images), step):
        image = images[number]
        # The middle rows: the first ones may be all black, and zeros prove nothing.
        rows = image.tobytes()[image.size // 4 : image.size * 3 // 4]
        if len(set(rows)) > 4 and rows in sealed:
            return number, f"image {number}"
    return len(range(0, len(images), step)), None


def _one_byte_changed(source: bytes) -> bytes:
    changed = bytearray(source)
    changed[source.index(b"lr=1e-3") + 3] ^= 2  # 1e-3 becomes 3e-3
    return bytes(changed)


def _flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def _entropy(data: bytes) -> float:
    """Shannon entropy of the bytes, in bits a byte."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    share = counts[counts > 0] / len(data)
    return float(-(share * np.log2(share)).sum())


def _hex(data: bytes) -> str:
    return data.hex(" ", 4)


def _short(fingerprint: str) -> str:
    return fingerprint[:23] + "..."
