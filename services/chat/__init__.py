"""The text side of a request. Pure functions and values; no torch, no database, no HTTP.

`request/` makes a Job of what is asked, `parsing/` makes events of the pieces that the engine gives, `answer/` makes of
events what is sent and what is stored. Between them stand `events`, `items` (the form in which all is stored: chat
messages <-> items) and `dialects` (how models write down thoughts and calls).
"""
