"""An object store that is nowhere: what servers and their clients do to callers."""

from fsspec.spec import AbstractFileSystem


class RemoteError(Exception):
    """What client libraries raise: no OSError."""


class Remote(AbstractFileSystem):
    """Keeps objects in `store`, caches listings as real clients do, and counts requests.

    `conditional`: keeps to mode="create". `broken`: the next so many uploads fail after they took effect. `short`:
    reads lack that many bytes. `down_from`: requests that change anything fail from this one (from 0) on.
    """

    protocol = "remote"
    cachable = False

    def __init__(self, store=None, *, conditional=True):
        super().__init__()
        self.store = {} if store is None else store
        self.conditional = conditional
        self.broken = 0
        self.short = 0
        self.changes = 0
        self.down_from = None
        self.requests = []
        self.listing = None

    def invalidate_cache(self, path=None):
        self.listing = None

    def ls(self, path, detail=True, **kwargs):
        self.requests.append(("ls", path))
        if self.listing is None:
            self.listing = {name: len(data) for name, data in self.store.items()}
        return [
            {"name": name, "size": size, "type": "file"}
            for name, size in self.listing.items()
            if name.startswith(path + "/")
        ]

    def info(self, path, **kwargs):
        if path not in self.store:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.store[path]), "type": "file"}

    def exists(self, path, **kwargs):
        return path in self.store

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.requests.append(("get", path.rsplit("/", 1)[-1], start, end))
        if path not in self.store:
            raise FileNotFoundError(path)
        return self.store[path][start:end][: -self.short or None]

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self.requests.append(("put", path.rsplit("/", 1)[-1]))
        self._change()
        if mode == "create" and self.conditional and path in self.store:
            raise FileExistsError(path)
        self.store[path] = bytes(value)
        if self.broken:
            self.broken -= 1
            raise RemoteError("connection reset")

    def _open(self, path, mode="rb", **kwargs):
        raise RemoteError("no streams here")

    def cp_file(self, path1, path2, **kwargs):
        self._change()
        self.store[path2] = self.store[path1]

    def _change(self):
        if self.down_from is not None and self.changes >= self.down_from:
            raise RemoteError("no route to host")
        self.changes += 1

    def rm_file(self, path):
        self._change()
        self.store.pop(path, None)
