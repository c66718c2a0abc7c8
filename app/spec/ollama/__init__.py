"""Ollama's API: chat, generate, embeddings, and its list of models."""
