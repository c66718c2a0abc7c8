"""Events -> what is sent and what is stored.

`encode` (chunks, a completion), `encode_completion` (legacy ones), `response_events` (OpenAI's Responses) and `usage`
(what it has used), `logprobs`, `padding`; `output` and `stored` are what is kept of it.
"""
