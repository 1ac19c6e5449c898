"""`strongroom ray`: Ray clusters whose nodes are enclaves."""
