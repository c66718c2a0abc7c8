"""The libraries of the pages are those that are pinned, and the page stays light."""

import re
from pathlib import Path

from tools.vendor import FOLDER, LIBRARIES, SUMS, sums

STATIC = FOLDER.parent
MAX_BYTES = 500_000
IMPORT = re.compile(r'^(?:import|export) [^;"]*from "(\./[^"]+)"', re.MULTILINE)  # static ones
API_DOCUMENTS = ("swagger-ui", "redoc")  # of /docs and /redoc, not of the chat page


def test_libraries_have_the_sums_they_were_pinned_with() -> None:
    assert (FOLDER / SUMS).read_text() == sums()


def test_each_library_has_its_licence() -> None:
    expected = {f"{each.folder}/{Path(name).name}" for each in LIBRARIES for name in each.files}
    found = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert found == expected | {SUMS}
    assert all((FOLDER / each.folder / "LICENSE").stat().st_size for each in LIBRARIES)


def test_the_page_is_light() -> None:
    files = [path for path in STATIC.rglob("*") if path.is_file() and path.parent.name not in API_DOCUMENTS]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES


def test_all_modules_of_the_page_are_preloaded() -> None:
    """Else the browser finds them one import after another."""
    page = (STATIC / "index.html").read_text()
    preloaded = re.findall(r'<link rel="modulepreload" href="static/([^"]+)">', page)
    assert sorted(preloaded) == sorted(imported(STATIC / "chat.js", set()) - {"chat.js"})


def imported(module: Path, found: set[str]) -> set[str]:
    name = module.relative_to(STATIC).as_posix()
    if name not in found:
        found.add(name)
        for path in IMPORT.findall(module.read_text()):
            imported((module.parent / path).resolve(), found)
    return found
