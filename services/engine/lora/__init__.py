"""LoRA adapters: read from PEFT's folders, and applied to the rows of a step that name one."""
