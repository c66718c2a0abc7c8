"""The libraries of the chat page are those that are pinned, and the page stays light."""

from pathlib import Path

from tools.vendor import FOLDER, LIBRARIES, SUMS, sums

STATIC = FOLDER.parent
MAX_BYTES = 500_000


def test_libraries_have_the_sums_they_were_pinned_with() -> None:
    assert (FOLDER / SUMS).read_text() == sums()


def test_each_library_has_its_licence() -> None:
    expected = {f"{each.folder}/{Path(name).name}" for each in LIBRARIES for name in each.files}
    found = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert found == expected | {SUMS}
    assert all((FOLDER / each.folder / "LICENSE").stat().st_size for each in LIBRARIES)


def test_the_page_is_light() -> None:
    assert sum(path.stat().st_size for path in STATIC.rglob("*") if path.is_file()) < MAX_BYTES
