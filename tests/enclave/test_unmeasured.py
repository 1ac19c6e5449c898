"""Compiled code that nobody measured is hidden from every interpreter, however it is started."""

import py_compile
import shutil
import subprocess
import sys

import pytest

from tests.enclave import small

INSIDE = """
import ctypes, os, subprocess, sys
from strongroom.enclave import unmeasured
site, shown, masks, overlay = sys.argv[1:]
if overlay == "no":
    def refuse(*paths): raise OSError
    unmeasured.overlay = refuse
unmeasured.bind(os.path.dirname(site) + "/hosts", shown)
unmeasured.make_masks([site, site + "/package"], masks)
under = os.open(site, os.O_PATH)
unmeasured.show_masked(masks, [shown, site])
os.mkdir("late/__pycache__", dir_fd=under)
print(os.path.isfile(site + "/late/__pycache__"))
code = "import sys; sys.path.insert(0, sys.argv[1]); import package.inner.module, led.module; print(*sys.argv[2:])"
for flags in (["-I"], ["-E", "-s"], ["-I", "-S"]):
    subprocess.run([sys.executable, *flags, "-B", "-c", code, site, "ran"], env={}, check=True)
print(os.listdir(shown), sorted(os.listdir(site + "/package")))
"""


@pytest.mark.parametrize("overlay", ["yes", "no"])
def test_compiled_code_is_hidden_below_directories_and_behind_links(tmp_path, overlay):
    own = ["unshare", "--map-root-user", "--mount", "--propagation", "private"]
    if not shutil.which("unshare") or subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("no user namespace here that may mount")
    site, apart = tmp_path / "site", tmp_path / "apart"
    for source in (site / "package/inner/module.py", apart / "module.py"):
        small.write(source, "pass\n")
        evil = small.write(tmp_path / "evil.py", "print('planted')\n")
        cached = source.parent / "__pycache__" / f"module.{sys.implementation.cache_tag}.pyc"
        py_compile.compile(
            str(evil), cfile=str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
    (site / "led").symlink_to(apart)
    small.write(site / "late/module.py")
    small.write(site / "package/data/file")
    small.write(tmp_path / "hosts/shown")
    masks = tmp_path / "masks"
    arguments = [str(site), str(site / "package/data"), str(masks), overlay]
    run = subprocess.run([*own, sys.executable, "-c", INSIDE, *arguments], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == (f"{overlay == 'yes'}\nran\nran\nran\n['shown'] ['data', 'inner']\n", "")
    plain = [sys.executable, "-I", "-c", "import sys; sys.path.insert(0, sys.argv[1]); import package.inner.module"]
    assert subprocess.run([*plain, str(site)], capture_output=True, text=True).stdout == "planted\n"


def test_a_link_to_what_holds_the_measured_files_is_refused(tmp_path):
    from strongroom.enclave.unmeasured import make_masks
    from strongroom.errors import EnclaveError

    site = tmp_path / "site"
    small.write(site / "module.py")
    (site / "up").symlink_to(tmp_path)
    with pytest.raises(EnclaveError, match="which holds what is measured"):
        make_masks([str(site)], str(tmp_path / "masks"))
