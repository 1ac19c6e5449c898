"""What stands around a program in an enclave: `files`, the file-system shield."""
