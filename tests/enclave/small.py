"""Small environments: measuring the real one takes seconds."""

import base64
import hashlib
import zipfile
from pathlib import Path

from strongroom.enclave.config import PROGRAM_ENTRY, BootConfig
from strongroom.enclave.measure import Environment

CONFIG = BootConfig(PROGRAM_ENTRY, "test/small", "sha256:" + "0" * 64, "program", ("python", "job.py"))
DEPENDENCY = {
    "dep/__init__.py": b"# a comment\n\nVALUE = 1\n",
    "dep/inner/mod.py": b"def f():\n    return 2\n",
    "dep-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: Dep\nVersion: 1.0\nSummary: for tests\nLicense: MIT\n"
    b"Requires-Dist: other>=1; python_version > '3'\nRequires-Dist: extra-one; extra == 'more'\n",
    "dep-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


def line(name, content):
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"


def record(files, directory):
    return "".join(line(name, content) for name, content in files.items()) + f"{directory}/RECORD,,\n"


def install(site, files, directory):
    for name, content in files.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (site / directory / "RECORD").write_text(record(files, directory))


def wheel(folder, files, directory):
    """A wheel of these files, and its path."""
    path = folder / f"{directory.removesuffix('.dist-info')}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{directory}/RECORD", record(files, directory))
    return path


def environment(root: Path) -> Environment:
    """An interpreter of a few files with one distribution."""
    site = root / "lib" / "python3.11" / "site-packages"
    install(site, DEPENDENCY, "dep-1.0.dist-info")
    for name, content in {
        "base/bin/python3.11": "interpreter",
        "base/lib/python3.11/os.py": "# os\n",
        "strongroom/__init__.py": "",
        "strongroom/enclave/entry.py": "import strongroom.errors\ndef f():\n    import strongroom.enclave.boot\n",
        "strongroom/enclave/__init__.py": "",
        "strongroom/enclave/boot.py": "",
        "strongroom/errors.py": "# none\nA = 1\n",
        "strongroom/mpc.py": "B = 1\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "bin").mkdir()
    (root / "bin" / "python").symlink_to(root / "base/bin/python3.11")
    return Environment(
        executable=root / "bin" / "python",
        prefix=root,
        base_prefix=root / "base",
        stdlib=root / "base/lib/python3.11",
        beside=(),
        site_packages=(site,),
        package=root / "strongroom",
    )


def write(path: Path, text: str = "print('planted')\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
