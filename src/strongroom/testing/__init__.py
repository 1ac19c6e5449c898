"""Public fakes for tests, of Strongroom and of programs that use it. Nothing else that ships imports this."""
