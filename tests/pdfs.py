"""Small PDFs, written by hand as far as it goes."""

import zlib
from io import BytesIO

from pypdf import PdfReader, PdfWriter


def pdf(*texts: str) -> bytes:
    """A page for each text."""
    return _written([f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() for text in texts])


def bomb(size: int) -> bytes:
    """A page whose content has so many bytes once it is decompressed, and again decompressed."""
    return _written([zlib.compress(zlib.compress(bytes(size)))], b"/Filter [/FlateDecode /FlateDecode]")


def slow() -> bytes:
    """A page of some million operators."""
    return _written([zlib.compress(b"BT /F1 12 Tf " + b"(a) Tj " * 5_000_000 + b"ET")], b"/Filter /FlateDecode")


def encrypted(data: bytes, user_password: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(BytesIO(data)))
    writer.encrypt(user_password, "owner", algorithm="AES-256")
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


def _written(contents: list[bytes], filter: bytes = b"") -> bytes:
    pages = range(4, 4 + 2 * len(contents), 2)
    kids = b" ".join(b"%d 0 R" % page for page in pages)
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Kids [%b] /Count %d >>" % (kids, len(contents)),
        3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    }
    for page, content in zip(pages, contents, strict=True):
        resources = b"<< /Font << /F1 3 0 R >> >>"
        objects[page] = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources %b /Contents %d 0 R >>" % (
            resources,
            page + 1,
        )
        objects[page + 1] = b"<< /Length %d %b >>\nstream\n%b\nendstream" % (len(content), filter, content)
    return _with_table(objects)


def _with_table(objects: dict[int, bytes]) -> bytes:
    out, places = b"%PDF-1.7\n", []
    for number, body in sorted(objects.items()):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    head = b"xref\n0 %d\n0000000000 65535 f \n%b" % (size, table)
    return out + head + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(out))
