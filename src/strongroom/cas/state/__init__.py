"""What a CAS remembers: rows that are sealed and hang on the log, over two databases, under one root secret."""
