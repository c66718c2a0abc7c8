"""How many bytes a body may have, by the path of its request."""

import re
from collections.abc import Callable

from services.upload_service import MAX_PART_BYTES

MaxBytes = Callable[[str], int]  # of a path

UPLOADS = ("/v1/files", "/files")  # parsed as they come in, and spooled to the disk
PARTS = re.compile(r"(/v1)?/uploads/[^/]+/parts")
FORM_BYTES = 64 * 1024  # of an upload besides the file: boundaries, headers and fields


def max_bytes(of_body: int, of_file: int) -> MaxBytes:
    def of_path(path: str) -> int:
        if PARTS.fullmatch(path):
            return MAX_PART_BYTES + FORM_BYTES
        return of_file + FORM_BYTES if path in UPLOADS else of_body

    return of_path
