"""Reads the text of a PDF in a process of its own: `python -m services.documents.pdf_process PAGES CHARACTERS CPU_S`.

A PDF is a program that may expand without bound: here memory and time are the system's to bound, and the event loop and
the engine's threads do not wait for it. The PDF is the standard input; on the standard output is one object of JSON,
with its `text` or an `error`.
"""

import json
import logging
import resource
import sys
from contextlib import suppress

from pypdf import PdfReader
from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError, PyPdfError, WrongPasswordError

MEMORY = 1024 * 1024 * 1024


class _Rejected(Exception): ...


def main(pages: int, characters: int, cpu_s: int) -> None:
    with suppress(ValueError, OSError):  # where the system does not bound memory
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable()  # a broken PDF has thousands of warnings
    json.dump(_outcome(pages, characters), sys.stdout)


def _outcome(pages: int, characters: int) -> dict[str, str]:
    try:
        return {"text": _text(pages, characters)}
    except _Rejected as error:
        return {"error": str(error)}
    except (FileNotDecryptedError, WrongPasswordError, DependencyError):
        return {"error": "is a PDF that needs a password"}
    except (MemoryError, LimitReachedError):
        return {"error": "is a PDF that takes too much memory"}
    except (PyPdfError, RecursionError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return {"error": "is a PDF that cannot be read: it is broken"}


def _text(pages: int, characters: int) -> str:
    reader = PdfReader(sys.stdin.buffer)
    if reader.is_encrypted and not reader.decrypt(""):  # many can be read by everybody, and not changed
        raise _Rejected("is a PDF that needs a password")
    if len(reader.pages) > pages:
        raise _Rejected(f"is a PDF of more than {pages} pages")
    texts: list[str] = []
    for page in reader.pages:
        texts.append(page.extract_text().strip())
        characters -= len(texts[-1])
        if characters < 0:
            raise _Rejected("is a PDF with too much text")
    if not (text := "\n\n".join(filter(None, texts))):
        raise _Rejected("is a PDF without text: its pages may be images")
    return text


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
