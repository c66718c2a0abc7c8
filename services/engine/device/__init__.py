"""Devices: which one runs a model, what memory and processors it has, and transfers to and from it."""
