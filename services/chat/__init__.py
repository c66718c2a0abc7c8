"""The text side of a request. Pure functions and values; no torch, no database, no HTTP.

`request/` prepares a request for a model (a `Job` and an `OutputFormat`), `parsing/` turns the engine's pieces into
events, `answer/` turns events into what is sent and what is stored. `formats/` has the chat formats: how models write
tool calls and mark thoughts. `events` and `items` (the form in which history is stored) stand between them.
"""
