"""A vision-language model behind the whole service."""

from pathlib import Path

import pytest

from services.engine import build
from tests.apps import NewSite
from tests.pictures import data_url, encoded, part
from tests.test_engine.tiny_vision import write

HELLO = {"type": "text", "text": "Which colour?"}


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
async def test_it_is_asked_about_an_image(new_site: NewSite, tmp_path: Path, name: str) -> None:
    folder = write(name, tmp_path)
    options = {"max_num_seqs": 2, "compile": False, "max_num_batched_tokens": 16}
    site = await new_site(build=build, model={"name": folder, "id": "eyes", "dtype": "float32"}, engine=options)

    async def ask(*content: object, n: int = 1) -> tuple[str, int, int]:
        body = {
            "model": "eyes",
            "messages": [{"role": "system", "content": "Look."}, {"role": "user", "content": list(content)}],
            "temperature": 0,
            "max_tokens": 8,
            "ignore_eos": True,
            "return_token_ids": True,
            "n": n,
        }
        answer = await site.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        (said,) = {str(choice["message"]["token_ids"]) for choice in answer.json()["choices"]}
        return said, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    red = part(data_url(encoded(size=(24, 16), colour="red")))
    blue = part(data_url(encoded(size=(24, 16), colour="blue")))
    first, again, other, text = [await ask(*each) for each in ([HELLO, red], [HELLO, red], [HELLO, blue], [HELLO])]
    assert first[0] == again[0] != other[0]
    assert first[1] == other[1] > text[1] + 1
    assert (await ask(HELLO, blue, red, n=3))[1] > first[1]
    assert again[2] == first[1] - 1 > other[2]
