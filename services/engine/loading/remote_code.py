"""Models that come with code of their own (`auto_map` in config.json): it runs here only if the operator trusts it."""

from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from services.engine.loading.unusable import UnusableModel

SETTING = "TRUST_REMOTE_CODE"
NEEDED = "trust_remote_code"  # in the errors of transformers


def runs_own_code(source: str, trusted: bool, subfolder: str = "") -> bool:
    """Whether the model's own code is run: where transformers has none of its kind. Raises UnusableModel where it would
    have to be, but is not trusted. Nothing of it runs here."""
    config, _ = PreTrainedConfig.get_config_dict(source, subfolder=subfolder)
    if "auto_map" not in config or config.get("model_type") in CONFIG_MAPPING:
        return False
    if not trusted:
        raise _untrusted(source)
    return True


def read_trusted_tokenizer(source: str, trusted: bool, **options: Any) -> Any:
    """A tokenizer may have code of its own where its model has none."""
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    except ValueError as error:
        if NEEDED not in str(error):
            raise
        if not trusted:
            raise _untrusted(source) from error
    return AutoTokenizer.from_pretrained(source, trust_remote_code=True, **options)


def _untrusted(source: str) -> UnusableModel:
    return UnusableModel(f"{source} comes with code of its own, which runs with {SETTING}=true only: read it before")
