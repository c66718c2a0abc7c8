"""What each causal language model of transformers does here: `python -m tools.architectures` tries them one by one."""
