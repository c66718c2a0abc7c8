"""Real agent programs, as npm brings them, against the whole service in a network without anything else.

What the model says is written in advance; the tokens, the template, the grammars and the wire are real.
"""
