"""Where the contents of files lie: one file of code a kind of store."""
