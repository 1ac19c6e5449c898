"""The public names, pinned: a change here is a change for users."""

import subprocess
import sys

import strongroom


def test_the_public_names_are_these():
    assert sorted(strongroom.__all__) == [
        "Client",
        "FileAnchor",
        "MemoryAnchor",
        "NO_FRESHNESS",
        "Root",
        "__version__",
        "errors",
        "export",
        "open_sealed",
        "vault",
    ]
    for name in strongroom.__all__:
        assert getattr(strongroom, name) is not None


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, strongroom; print([m for m in ('numpy', 'cryptography', 'torch', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# A Windows machine with the base install, as far as Linux can play it: the modules and calls that it lacks are gone
# before anything of Strongroom is imported.
WINDOWS = """
import os, pathlib, sys, tempfile, types
import asyncio, socket, ssl, subprocess, threading, tempfile, shutil, signal, sqlite3
import numpy, cryptography.x509, OpenSSL.SSL, uvicorn.protocols.http.httptools_impl, starlette.routing, dcap_qvl, h11
import rich.table, rich.progress, rich.panel, concurrent.futures, multiprocessing
hidden = {"fcntl", "termios", "pwd", "grp", "resource", "pyfuse3", "trio", "onnxruntime", "onnx", "torch", "sklearn"}
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
for name in hidden & set(sys.modules):
    del sys.modules[name]
for name in dir(os):
    if name in ("pread", "pwrite", "preadv", "pwritev", "fdatasync", "mkfifo") or name in ("O_DIRECTORY", "O_NOFOLLOW"):
        delattr(os, name)
del socket.AF_UNIX
msvcrt = sys.modules["msvcrt"] = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK = msvcrt.LK_UNLCK = 0
msvcrt.locking = lambda *arguments: None
lseek = os.lseek
os.lseek = lambda fd, place, how: lseek(fd, min(place, 1 << 40), how)  # NTFS seeks further than ext4
sys.platform = "win32"
os.environ["LOCALAPPDATA"] = tempfile.mkdtemp()
"""

PORTABLE = """
from strongroom.cli.main import main
import strongroom.serve.client, strongroom.cas.client.owner, strongroom.cas.client.enclave, strongroom.attest.verify
import strongroom.attest.tee.simulated, strongroom.enclave.launch
work = pathlib.Path(tempfile.mkdtemp())
(work / "data").mkdir()
(work / "data" / "a.txt").write_text("hello")
assert main(["seal", str(work / "data")]) == 0
(work / "data" / "a.txt").unlink()
assert main(["unseal", str(work / "data.vault"), str(work / "again")]) == 0
assert (work / "again" / "a.txt").read_text() == "hello"
with strongroom.open_sealed(work / "one", "x", key=bytes(32), anchor=strongroom.MemoryAnchor()) as file:
    file.write(b"sealed")
for verb in (["run", "--", "python", "x.py"], ["serve", str(work / "data.vault")], ["demo"]):
    status = main(verb)
    assert status == 61, (verb, status)
assert main(["predict", "--url", "https://127.0.0.1:1", "--policy", "a/b"]) == 2
main(["doctor"])
"""


def test_without_linux_sealing_and_clients_work_and_run_says_why_it_refuses():
    done = subprocess.run([sys.executable, "-c", WINDOWS + PORTABLE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("platform: enclaves are launched on Linux, this is win32") == 3
