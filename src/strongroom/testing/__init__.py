"""Public fakes for tests, of Strongroom and of programs that use it. Nothing else that ships imports this."""

from strongroom.testing.storage import Faults, FaultyDirectory, FaultyStorage, PowerCutError

__all__ = ["Faults", "FaultyDirectory", "FaultyStorage", "PowerCutError"]
