"""Several processes of this machine behind one address: `parley serve --replicas N`.

The front accepts a connection, looks at its request without taking it from the socket, chooses a replica and hands the
connection itself over (SCM_RIGHTS). No byte of an answer passes through the front, so a token costs nothing more than
with one process. Each connection has one request, so that each request is given to the replica of its conversation.
"""
