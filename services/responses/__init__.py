"""The Responses API on the chat pipeline: its requests as chat completions, a chat's events as those of a response."""
