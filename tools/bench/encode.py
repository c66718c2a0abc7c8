"""Embeds lines of JSON with sentence-transformers in bfloat16; runs in another Python that need not have Parley."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from importlib import import_module


def answers() -> Iterator[dict[str, object]]:
    """Answers once the model is loaded, then each line."""
    model = import_module("sentence_transformers").SentenceTransformer(sys.argv[1]).bfloat16()
    yield {}
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        vectors = model.encode(request["texts"], batch_size=request["batch"], show_progress_bar=False)
        yield {"seconds": time.perf_counter() - started, "texts": len(vectors)}


def main() -> None:
    sys.path.pop(0)  # removes this folder, whose modules would shadow the library's
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends it
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # prints of libraries must not mix with answers
        try:
            for answer in answers():
                print(json.dumps(answer), file=out, flush=True)
        except Exception as problem:
            print(json.dumps({"error": f"{type(problem).__name__}: {problem}"}), file=out, flush=True)
            sys.exit(1)


if __name__ == "__main__":
    main()
