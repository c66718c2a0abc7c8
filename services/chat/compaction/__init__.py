"""Compaction: a summary, written by a model, replaces what a conversation said before."""
