"""A server of S3's protocol on a port of its own, with one bucket."""

from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import fsspec  # type: ignore[import-untyped]
import pytest

BUCKET = "files"


class S3:
    def __init__(self, address: str) -> None:
        self.options = {"endpoint_url": address, "key": "a-key", "secret": "a-secret"}
        self.files: Any = fsspec.filesystem("s3", **self.options, use_listings_cache=False, skip_instance_cache=True)

    def names(self, prefix: str) -> list[str]:
        return sorted(path.rpartition("/")[2] for path in self.files.find(f"{BUCKET}/{prefix}"))

    def unfinished(self) -> list[str]:
        """Uploads in parts that nobody has completed or aborted."""
        found = self.files.call_s3("list_multipart_uploads", Bucket=BUCKET).get("Uploads") or ()
        return sorted(str(each["Key"]) for each in found)


@pytest.fixture
def s3() -> Iterator[S3]:
    from moto.server import ThreadedMotoServer  # of many services: slow to load

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # what other tests have left
        made = S3(f"http://{host}:{port}")
        made.files.call_s3("create_bucket", Bucket=BUCKET)
        yield made
    finally:
        server.stop()
