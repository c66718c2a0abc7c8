"""Models of a hub: which of a repository's files are needed, fetching them, and what is on this disk already.

The hub's library begins a file anew when its process was ended meanwhile: the large ones are fetched here, into its
cache, where a later pull goes on with them.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import httpx2
from filelock import FileLock
from huggingface_hub import HfApi, constants, hf_hub_url, scan_cache_dir, snapshot_download
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils._headers import build_hf_headers

from services.errors import InvalidRequest, ModelNotFound, Unavailable
from services.models.download import Report, download
from services.models.footprint import GGUF_PART, gguf_type
from services.models.hub_names import Stored, parse

TEXTS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "*.spm", "*/config.json")
OTHERS = ("onnx/*", "openvino/*", "coreml/*", "original/*", "*.onnx", "*.msgpack", "*.h5", "*.ot", "consolidated*")
SHA256 = re.compile("[0-9a-f]{64}")
MARGIN = 1 << 28  # bytes of disk that stay free


def pull(name: str, revision: str | None = None, report: Report = lambda have, total: None) -> Path:
    """What `parley serve --model` takes: the folder, or the GGUF file. Goes on with a download that was cut off.

    `name`: `owner/name`, or `owner/name:VARIANT` for one of several GGUF files, as `Q4_K_M`. Raises InvalidRequest,
    ModelNotFound and Unavailable.
    """
    wanted = parse(name)
    with _translated(wanted.repository):
        info = HfApi().model_info(wanted.repository, revision=revision, files_metadata=True)
        files = needed(info.siblings or [], wanted.variant)
        _check_room(sum(file.size or 0 for file in files))
        _fetch_large(wanted.repository, str(info.sha), files, report)
        names = [file.rfilename for file in files]
        folder = Path(snapshot_download(wanted.repository, revision=revision, allow_patterns=names))
    ggufs = [name for name in names if name.endswith(".gguf")]
    return folder / min(ggufs) if ggufs else folder


@contextmanager
def _translated(repository: str) -> Iterator[None]:
    try:
        yield
    except GatedRepoError:
        raise ModelNotFound(
            f"{repository} asks for an agreement: accept it on its page, then set HF_TOKEN", param="model"
        ) from None
    except RepositoryNotFoundError:
        raise ModelNotFound(f"There is no model {repository}, or it needs HF_TOKEN", param="model") from None
    except RevisionNotFoundError:
        raise ModelNotFound(f"{repository} has no such revision", param="revision") from None
    except (HfHubHTTPError, HFValidationError, httpx2.HTTPError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unavailable(f"{repository} cannot be fetched: {reason}") from error


def needed(files: Sequence[RepoSibling], variant: str | None) -> list[RepoSibling]:
    """Of weights that are there in several forms one: safetensors before PyTorch's, one kind of GGUF file."""
    ours = [file for file in files if not any(fnmatch(file.rfilename, each) for each in OTHERS)]
    texts = [file for file in ours if any(fnmatch(file.rfilename, each) for each in TEXTS)]
    ggufs = [file for file in ours if file.rfilename.endswith(".gguf") and not _is_projector(file.rfilename)]
    safetensors = [file for file in ours if file.rfilename.endswith(".safetensors")]
    if ggufs and (variant or not safetensors):
        return [*texts, *_variant(ggufs, variant)]
    if variant:
        raise InvalidRequest(f"There is no GGUF file of the kind {variant}: the repository has none", param="model")
    weights = safetensors or [file for file in ours if fnmatch(file.rfilename, "*.bin")]
    if not weights:
        raise InvalidRequest(
            "There are no weights in it: neither safetensors, PyTorch's .bin nor GGUF files", param="model"
        )
    return [*texts, *weights]


def _is_projector(name: str) -> bool:
    return "mmproj" in name.lower()


def _variant(files: list[RepoSibling], variant: str | None) -> list[RepoSibling]:
    kinds = {file.rfilename for file in files}
    chosen = [file for file in files if variant is None or variant.lower() in _words(file.rfilename)]
    single = {GGUF_PART.sub("", file.rfilename) for file in chosen}
    if len(single) != 1:
        known = ", ".join(sorted(kinds))
        raise InvalidRequest(
            f"Which of its GGUF files? Name the kind behind a colon, as in owner/name:Q4_K_M. It has {known}",
            param="model",
        )
    return chosen


def _words(name: str) -> list[str]:
    return re.split(r"[./-]", name.lower())


def _check_room(size: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    folder = next(path for path in (cache, *cache.parents) if path.exists())
    if shutil.disk_usage(folder).free < size + MARGIN:
        raise Unavailable(f"It takes {size / 1e9:.1f} GB, and the disk has less free: HF_HOME names another folder")


def _fetch_large(repository: str, commit: str, files: Sequence[RepoSibling], report: Report) -> None:
    """Files that the hub knows by their SHA-256, one after the other. The others are small texts."""
    blobs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"), "blobs")
    blobs.mkdir(parents=True, exist_ok=True)
    large = [file for file in files if file.lfs]
    total = sum(file.size or 0 for file in large)
    done = 0
    for file in large:
        _fetch(file, repository, commit, blobs, _part_of(report, done, total))
        done += file.size or 0
        report(done, total)


def _part_of(report: Report, before: int, total: int) -> Report:
    return lambda have, _: report(before + have, total)


def _fetch(file: RepoSibling, repository: str, commit: str, blobs: Path, report: Report) -> None:
    assert file.lfs
    digest = file.lfs.sha256
    if not SHA256.fullmatch(digest):  # it becomes the name of a file
        raise ValueError(f"the hub's checksum of {file.rfilename} is none")
    blob = blobs / digest
    with FileLock(blobs / f"{blob.name}.lock"):  # another process may be fetching it
        if not blob.exists():
            url = hf_hub_url(repository, file.rfilename, revision=commit, endpoint=constants.ENDPOINT)
            download(url, blob, digest, report, headers=build_hf_headers())


def stored() -> list[Stored]:
    """By name. Downloads that are not complete are among them."""
    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    found: list[Stored] = []
    for repository in sorted(cache.repos, key=lambda each: each.repo_id):
        revisions = sorted(repository.revisions, key=lambda each: each.last_modified)
        if repository.repo_type == "model" and revisions:
            newest = revisions[-1].snapshot_path
            whole = Stored(repository.repo_id, newest, repository.size_on_disk)
            found += list(_ggufs(repository.repo_id, newest)) or [whole]
    return found


def _ggufs(repository: str, folder: Path) -> Iterator[Stored]:
    """One for each kind of GGUF file, where there are no other weights."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.gguf")):
        if not _is_projector(path.name):
            kinds.setdefault(gguf_type(path.name), []).append(path)
    if any(folder.glob("*.safetensors")):
        return
    for kind, files in kinds.items():
        name = repository if kind == "?" else f"{repository}:{kind}"
        yield Stored(name, files[0], sum(file.stat().st_size for file in files), tuple(files))


def find(name: str) -> Stored | None:
    """By its name; a repository with one kind of GGUF file also without the kind."""
    models = stored()
    exact = [each for each in models if each.name.lower() == name.lower()]
    found = exact or [each for each in models if each.repository.lower() == name.lower()]
    return found[0] if len(found) == 1 else None


def remove(model: Stored) -> None:
    """All revisions, or its GGUF files where the repository has others on this disk."""
    if sum(each.repository == model.repository for each in stored()) > 1:
        for file in model.files:
            file.resolve().unlink()
            file.unlink(missing_ok=True)
        return
    cache = scan_cache_dir(constants.HF_HUB_CACHE)
    found = next(each for each in cache.repos if each.repo_type == "model" and each.repo_id == model.repository)
    cache.delete_revisions(*(each.commit_hash for each in found.revisions)).execute()
