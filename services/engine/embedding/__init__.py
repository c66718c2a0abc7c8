"""Vectors and scores: text embeddings and cross-encoder reranking."""
