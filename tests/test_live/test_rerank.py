"""Documents put in order by the real default embedding model."""

import pytest
import requests

from tests.test_live.service import SECONDS, Service

pytestmark = pytest.mark.live

QUERY = "How do I bake bread?"
DOCUMENTS = [
    "The stock market fell today.",
    "Knead flour, water and yeast, and put it in the oven.",
    "Cats sleep a lot.",
]


def test_what_answers_comes_first(service: Service) -> None:
    asked = {"query": QUERY, "documents": DOCUMENTS, "return_documents": True, "top_n": 2}
    answer = requests.post(f"{service.url}/v1/rerank", json=asked, timeout=SECONDS).json()
    assert answer["results"][0]["index"] == 1
    assert answer["results"][0]["document"] == {"text": DOCUMENTS[1]}
    assert (answer["method"], len(answer["results"])) == ("embedding", 2)

    asked = {"text_1": QUERY, "text_2": DOCUMENTS}
    scores = requests.post(f"{service.url}/score", json=asked, timeout=SECONDS).json()["data"]
    assert scores[1]["score"] == pytest.approx(answer["results"][0]["relevance_score"], abs=1e-3)
