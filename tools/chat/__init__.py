"""`parley chat`: a chat in the terminal, over HTTP like any other client's."""
