"""requirements.lock has what requirements.txt and the extra for traces need, each package by its hashes."""

import re
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OUTDATED = "requirements.lock is older than requirements.txt: make lock"


def pins() -> list[Requirement]:
    texts = [
        (ROOT / name).read_text("utf-8")
        for name in ("requirements.txt", "requirements-otel.txt", "requirements-s3.txt")
    ]
    lines = [line.partition("#")[0].strip() for text in texts for line in text.splitlines()]
    return [Requirement(line) for line in lines if line]


def locked() -> dict[str, list[str]]:
    """The entries of each package: more than one where versions depend on the platform."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / "requirements.lock").read_text("utf-8"), flags=re.MULTILINE)
    entries: dict[str, list[str]] = {}
    for entry in text.replace("\\\n", " ").splitlines():
        name = canonicalize_name(entry.partition("==")[0])
        entries.setdefault(name, []).append(entry)
    return entries


def needed(requirement: Requirement, seen: set[str]) -> Iterator[str]:
    """The package, and all that it needs here, by the metadata of what is installed."""
    for extra in ("", *requirement.extras):
        name = canonicalize_name(requirement.name)
        if (key := f"{name}[{extra}]") in seen:
            continue
        seen.add(key)
        yield name
        for line in requires(name) or ():
            inner = Requirement(line)
            if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                yield from needed(inner, seen)


def test_it_has_the_pinned_versions() -> None:
    entries = locked()
    for pin in pins():
        versions = [entry.split()[0].partition("==")[2] for entry in entries[canonicalize_name(pin.name)]]
        assert all(pin.specifier.contains(version) for version in versions), (OUTDATED, str(pin), versions)


def test_every_package_has_hashes() -> None:
    for name, entries in locked().items():
        assert all(re.fullmatch(r"\S+==\S+( ;.*?)?( +--hash=sha256:[0-9a-f]{64})+", each) for each in entries), name


def test_it_has_what_they_need() -> None:
    seen: set[str] = set()
    names = {name for pin in pins() for name in needed(pin, seen)}
    assert len(names) > len(pins())
    assert names <= locked().keys(), (OUTDATED, names - locked().keys())


def test_it_has_the_setuptools_that_build_the_image() -> None:
    (entry,) = locked()["setuptools"]
    wanted = re.search(r'requires = \["(.*?)"\]', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert wanted
    assert Requirement(wanted[1]).specifier.contains(entry.split()[0].partition("==")[2])
