"""The CAS as a process: its application, its server, and copies of its directory."""
