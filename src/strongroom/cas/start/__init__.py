"""How a CAS begins: its identity, and who confirms after a start that its state is the newest."""
