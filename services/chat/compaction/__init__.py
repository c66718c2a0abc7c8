"""Compaction: a summary, written by a model, replaces the earlier part of a conversation."""
