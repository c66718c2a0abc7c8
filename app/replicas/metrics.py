"""One page of metrics for all replicas: each sample has a label `replica`."""

import re
from collections.abc import Mapping

SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})?( .*)$")


def merged(pages: Mapping[str, str]) -> str:
    """`pages`: by the replica's name. Samples of one metric stay together, as the format demands."""
    comments: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, page in pages.items():
        family = ""
        heads: list[str] = []
        for line in page.splitlines():
            if line.startswith("#"):
                name = line.split(" ", 3)[2]
                heads = [*heads, line] if name == family else [line]
                family = name
                comments.setdefault(family, heads)
                comments[family] = max(comments[family], heads, key=len)
            elif found := SAMPLE.match(line):
                samples.setdefault(family, []).append(_labelled(replica, *found.groups()))
    return "".join(f"{line}\n" for family in comments for line in comments[family] + samples.get(family, []))


def _labelled(replica: str, name: str, labels: str | None, rest: str) -> str:
    inner = labels[1:-1].rstrip(",") if labels else ""
    return f'{name}{{replica="{replica}"{"," + inner if inner else ""}}}{rest}'
