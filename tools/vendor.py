"""Writes the libraries of the pages, from npm: `python -m tools.vendor`. Versions and digests are pinned here."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "app" / "static" / "vendor"
SUMS = "SHA256SUMS"


@dataclass(frozen=True, slots=True)
class Library:
    folder: str
    package: str
    version: str
    sha512: str  # of the package, in hexadecimal
    files: tuple[str, ...]  # the licence is one of them


LIBRARIES = (
    Library(
        "marked",
        "marked",
        "18.2.1",
        "8a2e1bc424c2aaac294fce9765680936cf999c021992c98b19831589603b3c321760878da35c7a703757dc93a2a7d34cfdc23aa7ccf9ec5c6588009ba13aee30",
        ("lib/marked.esm.js", "LICENSE"),
    ),
    Library(
        "highlight",
        "@highlightjs/cdn-assets",
        "11.12.0",
        "2af38a5ce0da88598877dc5aab7c5ce7108bebac152d4b8e9e00db3bd07f91ec1b153a9d19b9f69c9c4d84ddc7e51d5c8034d58fa47cbc7d338223431068e90f",
        ("es/highlight.min.js", "LICENSE"),
    ),
    Library(
        "temml",
        "temml",
        "0.13.5",
        "68f9030e0ba76a7a4b34bd2a977d876e896a2dea7ec3c0d17155d1aa5eeb5ab32dfcf85ccdd2e02f8501618554dc162308d8e41aae04ab022272eff35abd623a",
        ("dist/temml.min.js", "dist/Temml-Local.css", "dist/Temml.woff2", "LICENSE"),
    ),
    Library(
        "swagger-ui",
        "swagger-ui-dist",
        "5.35.0",
        "534eaba4cb56f55dd73c638179a993512af4674f63317e0826e00da44fc465b021c341bc0a0c2bcd4e18997927fe1d3008336c5dd19aad334d1c2dec53cc9551",
        ("swagger-ui-bundle.js", "swagger-ui-bundle.js.LICENSE.txt", "swagger-ui.css", "LICENSE", "NOTICE"),
    ),
    Library(
        "redoc",
        "redoc",
        "2.5.4",
        "33a8d6846d6aa019c7e93166cc99ecb72099f3b1e6398fd4cc39bbf261e262284476557f61c4bda203a8d4d94496724c78bb32c4715edb215ce2c3631d3ac005",
        ("bundles/redoc.standalone.js", "bundles/redoc.standalone.js.LICENSE.txt", "LICENSE"),
    ),
)


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for library in LIBRARIES:
        with tempfile.TemporaryDirectory() as folder:
            _unpack(_fetched(library, Path(folder)), library)
    (FOLDER / SUMS).write_text(sums())


def _fetched(library: Library, folder: Path) -> Path:
    package = f"{library.package}@{library.version}"
    command = ["npm", "pack", "--silent", f"--pack-destination={folder}", package]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tgz")
    if hashlib.sha512(archive.read_bytes()).hexdigest() != library.sha512:
        raise SystemExit(f"{package} is not what it was when it was pinned")
    return archive


def _unpack(archive: Path, library: Library) -> None:
    target = FOLDER / library.folder
    target.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for name in library.files:
            member = tar.extractfile(f"package/{name}")
            if member is None:
                raise SystemExit(f"{library.package} has no file {name}")
            (target / Path(name).name).write_bytes(member.read())


def sums() -> str:
    """What is there, as `sha256sum` writes it."""
    files = sorted(path for path in FOLDER.rglob("*") if path.is_file() and path.name != SUMS)
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(FOLDER)}\n" for path in files)


if __name__ == "__main__":
    main()
