"""Machines that are one TEE as a whole, and the programs that a launcher starts on them (docs/decisions/0022).

A confidential VM, or a PC with a TPM, attests what it booted. The launcher is a part of that. It measures a program
before it starts it, and then stands between the program and the TEE:

1. The program's measurement goes into a register that only grows, and into the log (`log`), before the program starts.
   SNP has no such register.
2. Evidence that the program asks for is made over report data that names its measurement
   (`attest.binding.launched_data`), and travels with the log.

The register shows which programs ran; which of them asks is the launcher's word.
"""
