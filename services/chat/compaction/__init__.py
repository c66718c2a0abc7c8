"""A conversation that grows too long, told by a summary that a model has written."""
