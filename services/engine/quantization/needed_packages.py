"""Whether the `quantization_config` of a checkpoint can be read on this machine: by us, or by transformers with a
package. Without torch, so that it is known before anything is loaded."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from services.engine.loading.unusable import UnusableModel
from services.engine.quantization import WEIGHT_FORMATS

PACKAGES = {  # by the method: what is imported, and what is to be installed
    "gptq": {"gptqmodel": "gptqmodel", "optimum": "optimum"},
    "awq": {"gptqmodel": "gptqmodel"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "torchao": {"torchao": "torchao"},
    "quanto": {"optimum": "optimum-quanto"},
    "quark": {"quark": "amd-quark"},
    "auto-round": {"auto_round": "auto-round"},
    "aqlm": {"aqlm": "aqlm[cpu]"},
    "vptq": {"vptq": "vptq"},
    "spqr": {"spqr_quant": "spqr_quant[gpu]"},
    "sinq": {"sinq": "sinq"},
    "eetq": {"kernels": "kernels"},
    "fp_quant": {"fp_quant": "fp_quant"},
    "higgs": {"flute": "flute-kernel"},
    "fouroversix": {"fouroversix": "fouroversix"},
    "hqq": {"hqq": "hqq"},
}
BITS = ("load_in_4bit", "load_in_8bit")  # of old configurations of bitsandbytes
INSTEAD = (
    "GPTQ, AWQ, compressed-tensors and GGUF files are read without any, and so is a checkpoint of 16 bits, which"
    " PARLEY_ENGINE__QUANTIZATION=int8 packs"
)


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """None: the configuration has none."""
    found = config.get("quant_method")
    return "bitsandbytes" if found is None and any(config.get(name) for name in BITS) else found


def refuse_without_packages(config: Mapping[str, Any], source: str) -> None:
    """Raises UnusableModel. `config`: a `quantization_config`."""
    method = quantization_method(config)
    if method is None or method in WEIGHT_FORMATS or not (lacking := lacking_packages(method)):
        return
    raise UnusableModel(
        f"{source} is quantised by {method}, which is read where {' and '.join(lacking)} is installed. {INSTEAD}"
    )


def lacking_packages(method: str) -> list[str]:
    return [name for module, name in PACKAGES.get(method, {}).items() if find_spec(module) is None]
