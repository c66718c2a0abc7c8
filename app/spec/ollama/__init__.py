"""Ollama's API: chat, generate, embeddings, and what it tells of its models."""
