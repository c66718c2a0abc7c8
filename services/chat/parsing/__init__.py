"""Pieces -> events: `channels`, with `splitter` (markers of a dialect) and `json_text`."""
