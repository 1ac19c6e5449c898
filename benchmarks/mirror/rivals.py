"""The other ways, each as its documentation has it; all end durable, under the final name."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.mirror.ways import KEY, Laps, State, Way, rename, write

ENCRYPTED: Final = "encrypted torch.save"


class TorchSave(Way):
    name = "torch.save"

    def save(self) -> Laps:
        import torch

        began = time.perf_counter()
        path, new = self.folder / "state", self.folder / "state.new"
        with new.open("wb") as file:
            torch.save(self.state.parts(), file)
            file.flush()
            os.fsync(file.fileno())
        rename(new, path)
        return Laps.clear(time.perf_counter() - began)

    def restore(self) -> Laps:
        import torch

        began = time.perf_counter()
        torch.load(self.folder / "state", weights_only=True)
        return Laps.clear(time.perf_counter() - began)


class Encrypted(Way):
    name = ENCRYPTED

    def __init__(self, state: State, folder: Path) -> None:
        super().__init__(state, folder)
        self._gcm = AESGCM(KEY)

    def save(self) -> Laps:
        import torch

        began = time.perf_counter()
        clear = io.BytesIO()
        torch.save(self.state.parts(), clear)
        serialised = time.perf_counter()
        nonce = os.urandom(12)
        sealed = self._gcm.encrypt(nonce, clear.getbuffer(), None)
        encrypted = time.perf_counter()
        write(self.folder / "state", nonce, sealed)
        end = time.perf_counter()
        return Laps(end - began, encrypted - serialised, end - encrypted)

    def restore(self) -> Laps:
        import torch

        began = time.perf_counter()
        with (self.folder / "state").open("rb") as file:
            nonce, sealed = file.read(12), file.read()
        read = time.perf_counter()
        clear = self._gcm.decrypt(nonce, sealed, None)
        decrypted = time.perf_counter()
        torch.load(io.BytesIO(clear), weights_only=True)
        return Laps(time.perf_counter() - began, decrypted - read, read - began)


class Safetensors(Way):
    name = "safetensors"

    def save(self) -> Laps:
        from safetensors.torch import save_file

        began = time.perf_counter()
        path, new = self.folder / "state", self.folder / "state.new"
        save_file(self.state.tensors, new)
        fd = os.open(new, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        rename(new, path)
        return Laps.clear(time.perf_counter() - began)

    def restore(self) -> Laps:
        from safetensors.torch import load_file

        began = time.perf_counter()
        for tensor in load_file(self.folder / "state").values():
            tensor.clone()  # what is loaded is a map of the file, and is read when it is used
        return Laps.clear(time.perf_counter() - began)


class Distributed(Way):
    name = "distributed.checkpoint"

    def save(self) -> Laps:
        from torch.distributed.checkpoint.state_dict_saver import save

        began = time.perf_counter()
        save(self.state.parts(), checkpoint_id=self.folder / "new", no_dist=True)
        rename(self.folder / "new", self.folder / "state")
        return Laps.clear(time.perf_counter() - began)

    def restore(self) -> Laps:
        from torch.distributed.checkpoint.state_dict_loader import load

        began = time.perf_counter()
        load(self.state.parts(), checkpoint_id=self.folder / "state", no_dist=True)  # into memory that is there
        return Laps.clear(time.perf_counter() - began)


class Asynchronous(Distributed):
    name = "its async_save"

    def save(self) -> Laps:
        from torch.distributed.checkpoint.state_dict_saver import async_save

        began = time.perf_counter()
        future: Any = async_save(self.state.parts(), checkpoint_id=self.folder / "new", no_dist=True)
        stall = time.perf_counter() - began
        future.result()
        rename(self.folder / "new", self.folder / "state")
        return Laps.clear(time.perf_counter() - began, stall)
