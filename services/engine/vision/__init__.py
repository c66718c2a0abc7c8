"""Images of vision-language models: from pixels to embeddings in a prompt."""
