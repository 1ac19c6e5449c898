from __future__ import annotations

from strongroom.sealed.opening import open_in as real


class Shim:
    def __init__(self, f):
        self.f = f
        self.notes = []
        self.locks = None
        self.wanted_log = None

    def __getattr__(self, n):
        return getattr(self.f, n)

    def write_at(self, o, d):
        self.f._content.write_at(o, d)

    def live_sequences(self):
        r = self.f.root
        return [] if r is None else [r.sequence] + ([r.sequence - 1] if r.sequence > 1 else [])

    @property
    def log_position(self):
        return (0, b"")

    def moved(self):
        return False

    def reload(self):
        pass

    def refresh(self):
        pass

    def commit(self, log=None):
        self.f._replaced = self.f._replaced
        return self.f.commit()

    @property
    def file_id(self):
        return self.f._slots.header.file_id


def open_in(*a, shared=False, write_early=True, **k):
    return Shim(real(*a, **k))
