"""Tokens from other servers: prompts go out as token ids, sampled ids come back, text is made here.

`kinds` has one file for each kind of server, `upstream` the requests to one of them, `router` the choice between
several, `answer` the way of one job, and `engine` the engine.
"""
