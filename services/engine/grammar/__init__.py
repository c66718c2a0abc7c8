"""Structured output: grammars are checked in a process of their own, compiled, and matched token by token."""
