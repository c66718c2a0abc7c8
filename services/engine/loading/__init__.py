"""Models and tokenizers from files: checks, reading, devices and numbers."""
