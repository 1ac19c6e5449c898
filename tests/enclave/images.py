"""Image layouts, written as engines write them; each part can be made wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strongroom.enclave.elf import _linker_cache, needed

OCI = "application/vnd.oci.image"
LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]


def member(path: str, content: bytes | None = None, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(path)
    info.type = tarfile.REGTYPE if content is not None else tarfile.DIRTYPE
    info.size, info.mode = len(content or b""), 0o644 if content is not None else 0o755
    for name, value in fields.items():
        setattr(info, name, value)
    return info, content or b""


def link(path: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(path, type=kind, linkname=target)


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@dataclass
class Layout:
    """Writes an image layout; each part can be made wrong."""

    path: Path
    config: dict[str, Any] = field(default_factory=lambda: {"Entrypoint": ["/bin/app"], "Cmd": ["--serve"]})
    compress: bool = True

    def blob(self, raw: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(raw).hexdigest()
        directory = self.path / "blobs" / "sha256"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / digest).write_bytes(raw)
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(raw)}

    def manifest(self, *layers: bytes, machine: str = MACHINE) -> dict[str, Any]:
        kind = "layer.v1.tar+gzip" if self.compress else "layer.v1.tar"
        blobs = [self.blob(gzip.compress(raw, 1, mtime=0) if self.compress else raw, kind) for raw in layers]
        contents = [f"sha256:{hashlib.sha256(raw).hexdigest()}" for raw in layers]
        config = {"architecture": machine, "os": "linux", "config": self.config}
        config["rootfs"] = {"type": "layers", "diff_ids": contents}
        described = self.blob(json.dumps(config).encode(), "config.v1+json")
        manifest = {"schemaVersion": 2, "config": described, "layers": blobs}
        return self.blob(json.dumps(manifest).encode(), "manifest.v1+json")

    def index(self, *manifests: dict[str, Any]) -> Path:
        self.path.mkdir(exist_ok=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
        return self.path

    def of(self, *layers: bytes) -> Path:
        return self.index(self.manifest(*layers))


def commands(*names: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Programs of this machine in `/bin`, with the libraries that they load, at their own paths."""
    cache = _linker_cache()
    found = {f"/bin/{name}": os.path.realpath(str(shutil.which(name))) for name in names}
    pending = list(found.values())
    while pending:
        for library in needed(pending.pop()):
            if library in cache and cache[library] not in found:
                found[cache[library]] = os.path.realpath(cache[library])
                pending.append(cache[library])
    found |= {loader: os.path.realpath(loader) for loader in LOADERS if Path(loader).exists()}
    return [member(name[1:], Path(path).read_bytes(), mode=0o755) for name, path in sorted(found.items())]
