"""Pieces -> events: `channels` (one for each choice), `output_parser` (thoughts, content, calls), `scanner`."""
