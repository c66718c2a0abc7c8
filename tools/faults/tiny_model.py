"""A small model with random weights, which answers at once: the tests are about the store."""

from pathlib import Path

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def make(folder: Path, tokenizer_of: Path) -> Path:
    """A random Llama of 3 million parameters with another model's tokenizer and chat template."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **SHAPE)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
