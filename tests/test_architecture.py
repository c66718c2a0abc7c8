"""Import rules between packages and other rules of the house, checked in the syntax trees."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("app", "services", "schemas", "database", "tools")
FILES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


@dataclass(frozen=True, slots=True)
class Rule:
    module: str  # all three are regular expressions that match dotted names or prefixes of them
    may: str = "$"  # of our modules
    never: str = "$"  # of other packages


WEB = "fastapi|starlette|sse_starlette"
RULES = [
    Rule("schemas", may="schemas"),
    Rule(r"services\.documents", may=r"services\.documents", never=f"torch|transformers|{WEB}"),
    Rule("database", may="database"),
    Rule(r"services\.(errors|affinity|large|callers|rendezvous|file_stores|token_rate|tracing)"),
    Rule(r"services\.parameter_names", may=r"services\.errors"),
    Rule(r"services\.file_contents", may=r"services\.(errors|file_stores\.base)"),
    Rule(r"services\.engine\.(base|stop_strings)"),
    Rule(
        r"services\.engine\.scheduling",
        may=r"services\.(errors|engine\.(base|scheduling))",
        never=f"torch|transformers|threading|time|{WEB}",
    ),
    Rule(
        r"services\.engine\.grammar",
        may=r"services\.(errors|engine\.(base|grammar|token_texts|scheduling\.fair_slots))",
        never=f"torch|transformers|{WEB}",
    ),
    Rule(
        r"services\.engine\.sampling",
        may=r"services\.engine\.(base|device|grammar|sampling|scheduling)",
        never=f"transformers|threading|{WEB}",
    ),
    Rule(r"services\.engine\.device", may=r"services\.engine\.device", never=f"transformers|{WEB}"),
    Rule(
        r"services\.engine\.quantization(\.\w+_header)?$",
        may=r"services\.(errors|engine\.loading\.unusable)",
        never=f"torch|transformers|{WEB}",
    ),
    # what computes a step knows the step, not the sequences behind it
    Rule(
        r"services\.engine\.quantization\.gguf$",
        may=r"services\.(errors|engine\.(loading|quantization|parallel\.(group|sharding|split)))",
        never=WEB,
    ),
    Rule(
        r"services\.engine\.(cpu|lora|paged|quantization|vision|execution\.(\w*runner\w*|\w*executor|kv_cache|warm_up))",
        may=r"services\.(errors|engine\.(base|cpu|device|execution|loading|lora|paged|quantization|vision"
        r"|scheduling\.(pages|step)))",
        never=WEB,
    ),
    # the tokenizer is all of a model that a remote engine needs
    Rule(
        r"services\.engine\.remote",
        may=r"services\.(errors|rendezvous|tracing|engine\.(base|job_check|remote|streamer|token_texts|quantization"
        r"|embedding\.sentence_config"
        r"|grammar\.lark|execution\.piece_stream))",
        never=f"torch|{WEB}",
    ),
    Rule(r"services\.engine", may=r"services\.(errors|engine)", never=WEB),
    Rule(
        r"services\.chat",
        may=r"schemas|services\.(errors|affinity|parameter_names|chat|engine\.(base|stop_strings))",
        never=f"torch|{WEB}",
    ),
    Rule(r"services\.limits", may=r"services\.(callers|limits|history\.store)", never=f"torch|{WEB}"),
    Rule(
        r"services\.history",
        may=r"schemas|database|services\.(errors|affinity|callers|tracing|chat|history|engine\.base)",
        never=f"torch|{WEB}",
    ),
    Rule(
        r"services\.responses",
        may=r"schemas|services\.(errors|parameter_names|chat|history|responses|engine\.base)",
        never=f"torch|{WEB}",
    ),
    Rule(
        r"services\.batches",
        may=r"schemas|database|services\.(errors|callers|file_contents|file_service|history|batches)",
        never=f"torch|{WEB}",
    ),
    Rule(
        r"services\.models",
        may=r"services\.(errors|models|engine\.(base|device\.ram|engine_class|is_own|reads_weights|loading\.(model_files|progress|unusable)|lora\.adapter_config|quantization\.gguf_header))",
        never=f"torch|{WEB}",
    ),
    Rule(
        r"services\.\w+_service",
        may=r"schemas|database"
        r"|services\.(errors|large|callers|tracing|batches|documents|file_contents|parameter_names|token_rate|chat|history|limits|responses|models|\w+_service|engine\.(base|build|loading\.(progress|unusable)|scheduling\.fair_slots))",
        never=WEB,
    ),
    Rule(
        r"app\.common\.model_configs",
        may=r"app\.common\.settings|services\.(models|engine\.(base|is_own|reads_weights))",
        never=f"torch|{WEB}",
    ),
    Rule(
        r"app\.common\.settings",
        may=r"schemas|services\.(errors|large|\w+_service|chat\.formats\.(TOOL_FORMATS|syntax_error)"
        r"|engine\.quantization\.(METHODS|UNQUANTIZED))"
        r"|app\.common",
        never="torch",
    ),
    Rule(
        r"app\.(common|controller)",
        may=r"schemas|services\.(errors|affinity|large|callers|tracing|\w+_service)|app\.common",
        never="torch",
    ),
    # a spec parses requests and encodes events: it may use the parts of services.chat without a protocol
    Rule(
        r"app\.spec",
        may=r"schemas|services\.(errors|large|callers|parameter_names|engine\.base|models|\w+_service)|app\.(common|spec)"
        r"|services\.chat\.(events|sealed|request\.refusals|answer\.logprobs)",
        never="torch",
    ),
    Rule(r"app\.(startup|process)", may=r"app\.common|services\.models"),
    Rule(r"app\.lifespan", may=r"app\.(common|process|startup)|services|database"),
    # the app in a process that is handed its connections
    Rule(r"app\.replicas\.replica", may=r"app\.(main|common|replicas)|services\.affinity", never="torch"),
    Rule(r"app\.ray", may=r"app\.(main|common|replicas)|services\.rendezvous", never="torch"),
    Rule(r"app\.replicas\.ray_(proxy|board|ports)", may=r"app\.replicas", never="torch"),
    # the front of several processes reads no request further than its key
    Rule(r"app\.replicas", may=r"services\.(affinity|rendezvous)|app\.replicas", never=f"torch|{WEB}"),
    Rule(r"app\.composition", may=r"app\.common|services|database"),
    Rule(r"app\.main", may=r"app\.(common|composition|controller|lifespan|process|spec)|services|schemas|database"),
    # describes the whole app
    Rule(r"tools\.compatibility", may=r"app\.main|app\.common\.(settings|unserved)|services|schemas"),
    Rule(r"tools\.settings_page", may=r"app\.common\.settings|tools\.(compatibility|settings_list)"),
    Rule(r"tools\.config", may=r"app\.common|app\.startup|services\.models|tools\.settings_list"),
    Rule(r"tools\.(bench|faults|attacks)", may=r"tools|services|schemas|database|app\.common\.settings"),
    Rule(r"tools\.deploy", may=r"app\.(ray|common|replicas\.ray_board)|tools\.cli"),
    # in the wheel, without the programs above; the app is started by its name
    Rule(
        "tools",
        may=r"tools\.(?!bench|faults|attacks)\w+|services|schemas|database"
        r"|app\.replicas|app\.common\.(settings|configuration|exits|log|model_configs)",
    ),
    Rule("(app|services)$"),  # the two __init__ files
]


def matches(pattern: str, name: str) -> bool:
    return re.match(rf"({pattern})(\.|$)", name) is not None


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Dotted names, also of imports inside functions; `from a import b` is a.b, whether b is a module or not."""
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module, names, level):
                base = package[: len(package) + 1 - level] if level else []
                yield from (".".join([*base, *([module] if module else []), alias.name]) for alias in names)


def allowed(rule: Rule, name: str) -> bool:
    return matches(rule.may if matches("|".join(OURS), name) else f"(?!({rule.never})(\\.|$)).*", name)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_follow_the_table(path: Path) -> None:
    rule = next((rule for rule in RULES if matches(rule.module, module_name(path))), None)
    assert rule, "no rule matches this file"
    assert [name for name in imports(path) if not allowed(rule, name)] == []


def test_services_do_not_import_torch() -> None:
    services = [module_name(path) for path in FILES if matches(r"services\.\w+_service", module_name(path))]
    code = (
        "import sys, importlib as i\nfor m in sys.argv[1:]: i.import_module(m); 'torch' in sys.modules and sys.exit(m)"
    )
    run = subprocess.run([sys.executable, "-c", code, *services], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_no_file_is_called_utils_or_helpers() -> None:
    files = [*FILES, *(ROOT / "tests").rglob("*.py")]
    assert [path.name for path in files if re.search("(utils?|helpers?)$", path.stem)] == []


MAX_FUNCTION_LINES = 60


def long_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"


def test_functions_are_short() -> None:
    """From `def` to the end, with the parameters."""
    files = [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    assert [found for path in files for found in long_functions(path)] == []


def test_only_the_database_package_queries() -> None:
    found = []
    for path in (path for path in FILES if not module_name(path).startswith("database")):
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        found += [(path.name, call) for call in calls if re.fullmatch(r"((sa|sqlalchemy)\.)?(select|insert)", call)]
    assert found == []


OTHERS_NAMES = {"_request_id", "_exit", "_replace", "_python_dispatch", "_pytree", "_to_copy"}  # of libraries


def private_reaches(path: Path) -> Iterator[str]:
    """Private attributes of anything but the class itself, private imports, and private names that are patched."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(ast.Name("self" | "cls") | ast.Call(ast.Name("super"))):
                pass
            case ast.Attribute(attr=name) if is_private(name):
                yield ast.unparse(node)
            case ast.ImportFrom(names=names):
                yield from (each.name for each in names if is_private(each.name))
            case ast.Call(ast.Attribute(attr="setattr"), [_, ast.Constant(str(name)), *_]) if is_private(name):
                yield ast.unparse(node)


def is_private(name: str) -> bool:
    return bool(re.match(r"_[^_]", name)) and name not in OTHERS_NAMES


def test_tests_use_public_names() -> None:
    reaches = {str(path.relative_to(ROOT)): [*private_reaches(path)] for path in (ROOT / "tests").rglob("*.py")}
    assert {name: found for name, found in reaches.items() if found} == {}


PLACE = re.compile(r"\b(?:app|services|schemas|database|tools|examples|tests)/[\w/.-]*\w/?")


@pytest.mark.parametrize("document", ["docs/architecture.md", "README.md"])
def test_places_in_documents_exist(document: str) -> None:
    named = set(PLACE.findall((ROOT / document).read_text("utf-8")))
    assert named
    assert {each for each in named if not (ROOT / each).exists()} == set()
