"""Whether a model's files are whole, in milliseconds and without torch: headers are read, weights are not.

What this finds is told before the service begins; what only loading shows (an architecture nobody knows, numbers that
come out otherwise) is told when it loads.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.engine.loading.unusable import UnusableModel
from services.engine.quantization import FILE_HEADERS, file_header, weights_file
from services.engine.quantization.needed_packages import refuse_without_packages

HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
HUB_FILE = re.compile(HUB_NAME.pattern + r":[\w.-]+")  # owner/name:Q4_K_M
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
OTHER_TOKENIZERS = ("*.tiktoken", "tekken.json", "tokenizer_config.json")
MODELOPT = "hf_quant_config.json"
STATIC = ".StaticEmbedding"
READ = (".Transformer", STATIC)
ENCODERS = {  # as a chat model they would be given a head of random numbers
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet"),
    *("nomic_bert", "roberta", "xlm-roberta"),
}


def check(source: str, kind: str, *, weights: bool = True) -> None:
    """Raises UnusableModel; of what a hub has, only the form of its name is known.

    `weights`: whether they are needed, and what describes them.
    """
    path = Path(source)
    if path.is_dir() and not weights:
        _check_tokenizer(path)
    elif path.is_dir():
        _check_folder(path, kind)
    elif path.is_file():
        _check_file(path)
    elif HUB_FILE.fullmatch(source):
        raise UnusableModel(f"{source} is not on this disk: `parley pull {source}` fetches it")
    elif path.suffix in FILE_HEADERS or not HUB_NAME.fullmatch(source) or source.startswith("."):
        raise UnusableModel(f"there is no folder or GGUF file {source}")


def _check_file(path: Path) -> None:
    header = file_header(path)
    if header is None:
        raise UnusableModel(f"{path} is neither a model's folder nor a GGUF file")
    header.check(path)


def _check_folder(folder: Path, kind: str) -> None:
    inner = folder / _subfolder(folder)
    if kind == "embedding" and _is_static(folder):
        _check_weights(inner / "model.safetensors")
        _check_tokenizer(inner)
        return
    config = _read_config(inner)
    if kind == "chat" and config.get("model_type") in ENCODERS and not config.get("is_decoder"):
        raise UnusableModel(f"{folder} is an encoder ({config['model_type']}): it makes embeddings, but writes no text")
    if kind == "chat" and config.get("is_encoder_decoder"):
        raise UnusableModel(f"{folder} is an encoder-decoder ({config['model_type']}): a chat model is a decoder alone")
    quantization = config.get("quantization_config")
    if (inner / MODELOPT).exists() and not isinstance(quantization, dict):
        raise UnusableModel(
            f"{folder} is quantised by ModelOpt ({MODELOPT}), and its config.json has no quantization_config, as later"
            " versions write it"
        )
    if isinstance(quantization, dict):
        refuse_without_packages(quantization, str(folder))
    for weights in _weights(inner):
        _check_weights(weights)
    _check_tokenizer(inner)


def _subfolder(folder: Path) -> str:
    """Where sentence-transformers keeps what is read first."""
    if not (folder / "modules.json").exists():
        return ""
    modules = _read_json(folder / "modules.json")
    paths = [str(each.get("path", "")) for each in modules if str(each.get("type", "")).endswith(READ)]
    return paths[0] if paths else ""


def _is_static(folder: Path) -> bool:
    """Whether it has vectors of tokens and no model."""
    file = folder / "modules.json"
    return file.exists() and any(str(each.get("type", "")).endswith(STATIC) for each in _read_json(file))


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").exists():
        if ggufs := sorted(folder.glob("*.gguf")):
            raise UnusableModel(f"{folder} has no config.json: name the GGUF file itself, e.g. {ggufs[0]}")
        raise UnusableModel(f"{folder} is no model's folder: it has no config.json")
    config = _read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UnusableModel(f"{folder / 'config.json'} names no model_type")
    return config


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UnusableModel(f"{path} is no JSON: {error}") from None


def _weights(folder: Path) -> Iterator[Path]:
    if file := weights_file(folder):
        yield file
        return
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            yield folder / name
            return
        index = folder / f"{name}.index.json"
        if index.exists():
            yield from (folder / each for each in _shards(index))
            return
    raise UnusableModel(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin")


def _shards(index: Path) -> list[str]:
    shards = _read_json(index)
    named = shards.get("weight_map") if isinstance(shards, dict) else None
    if not isinstance(named, dict) or not named:
        raise UnusableModel(f"{index} names no files")
    return sorted({str(each) for each in named.values()})


def _check_weights(path: Path) -> None:
    if not path.is_file():
        raise UnusableModel(f"{path} is missing")
    if path.suffix == ".safetensors":
        _check_safetensors(path)
    elif header := file_header(path):
        header.check(path)
    elif path.stat().st_size == 0 or (_begins_as_zip(path) and not zipfile.is_zipfile(path)):
        raise UnusableModel(f"{path} is not whole")


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _check_safetensors(path: Path) -> None:
    """8 bytes: the header's length; the header, in JSON: where each tensor is; the tensors, to the end of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise UnusableModel(f"{path} is not whole, or no safetensors file")
        try:
            tensors = json.loads(file.read(length))
            ends = [int(each["data_offsets"][1]) for name, each in tensors.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise UnusableModel(f"{path} is no safetensors file: its header cannot be read") from None
    if 8 + length + max(ends, default=0) != size:
        raise UnusableModel(f"{path} is not whole: {size} bytes of {8 + length + max(ends, default=0)}")


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).exists() for name in TOKENIZERS) and not any(
        next(folder.glob(pattern), None) for pattern in OTHER_TOKENIZERS
    ):
        raise UnusableModel(f"{folder} has no tokenizer: no {', '.join(TOKENIZERS[:2])} or the like")
    path = folder / "tokenizer.json"
    if path.exists() and not _ends_as_json(path):
        raise UnusableModel(f"{path} is not whole")


def _ends_as_json(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return file.read().rstrip().endswith(b"}")
