"""Where things lie in a sandboxed enclave: constants of measured code, so that the host has no say in them.

Without imports: what begins first takes them from here, the rest from `config`.
"""

from __future__ import annotations

PROGRAM_DIRECTORY = "/program"
VAULTS_DIRECTORY = "/run/strongroom/vaults"
DEPOSITS_DIRECTORY = "/run/deposits"
MIRROR_DIRECTORY = "/run/mirror"
MOUNTED_DIRECTORY = "/run/strongroom/mounted"  # boot's own: vaults before they are where the program finds them
HOSTS_DIRECTORY = "/run/strongroom/hosts"  # and directories of the host's
IMAGE_DIRECTORY = "/run/strongroom/image"  # boot's own: a container image's tree
ROOT_DIRECTORY = "/run/strongroom/root"  # and what the program of one gets as its root
OUTPUTS_DIRECTORY = "/run/strongroom/outputs"  # boot's own, too
SANDBOX_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",  # noqa: S108  # the enclave's own
    "LANG": "C.UTF-8",
    "TERM": "xterm",
}
SANDBOX_PYCACHE = "/tmp/.pycache"  # noqa: S108
BOOT_PYCACHE = "/run/strongroom/pycache"  # boot's own, which the program does not see
COMPILED_DIRECTORY = "/run/compiled"  # read-only: `compiled.py`
ROOTS_FILE = "/etc/ssl/certs/ca-certificates.crt"  # where systems keep them
