"""Logits to tokens: sampler and logits processors."""
