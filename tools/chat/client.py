"""The server's API, as far as a chat uses it."""

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx2

from tools.chat.errors import ChatError, LostConnection
from tools.chat.events import Answer, Event, Json, read_events
from tools.chat.tree import Node, Tree

CONNECT_S = 5.0
SILENCE_S = 60.0  # the server sends signs of life every few seconds
PAGE = 100


class Client:
    """Raises LostConnection, or ChatError with what the server said."""

    def __init__(self, url: str, key: str | None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx2.Timeout(SILENCE_S, connect=CONNECT_S)
        self.url = url.rstrip("/").removesuffix("/v1")
        # a proxy of the environment cannot reach this machine's own loopback
        self._http = httpx2.Client(
            base_url=self.url, headers=headers, timeout=timeout, trust_env=not is_loopback(self.url)
        )

    def close(self) -> None:
        self._http.close()

    def is_answering(self) -> bool:
        try:
            self._http.get("/health")
        except httpx2.ConnectError:
            return False
        except httpx2.TransportError as error:
            raise LostConnection(f"{self.url} cannot be reached: {error}") from error
        return True

    def readiness(self) -> str:
        """ok, loading, draining, failed or stalled."""
        with _translated():
            return str(self._http.get("/health/ready").json().get("status", "ok"))

    def chat_models(self) -> list[Json]:
        return [each for each in self._get("/v1/models")["data"] if "sampling" in each]

    def is_loaded(self, model: str | None) -> bool:
        models = self.chat_models()
        return any("max_model_len" in each for each in models if model in (None, each["id"])) or not models

    def create_conversation(self, title: str, metadata: Json) -> str:
        return str(self._post("/v1/conversations", {"title": title, "metadata": metadata})["id"])

    def conversation(self, id: str) -> Json:
        return self._get(f"/v1/conversations/{id}")

    def newest_conversation(self) -> str | None:
        found = self._get("/v1/conversations", limit=1)["data"]
        return str(found[0]["id"]) if found else None

    def set_metadata(self, conversation: str, metadata: Json) -> None:
        self._post(f"/v1/conversations/{conversation}", {"metadata": metadata})

    def search(self, words: str) -> list[Json]:
        found: list[Json] = self._get("/v1/conversations/search", query=words)["data"]
        return found

    def tree(self, conversation: str) -> Tree:
        nodes: list[Node] = []
        after: Json = {}
        while True:
            page = self._get(f"/v1/conversations/{conversation}/tree", limit=PAGE, **after)
            nodes += [Node(each["item"], each["parent_item"] or "") for each in page["data"]]
            if not page["has_more"]:
                return Tree(nodes)
            after = {"after": page["last_id"]}

    def question_of(self, response_id: str) -> str:
        """The id of the last input item of a response."""
        return str(self._get(f"/v1/responses/{response_id}/input_items", limit=1)["data"][0]["id"])

    def stream(self, body: Json) -> Iterator[Event]:
        """The answer is made in the background, so that it can be cancelled by its id."""
        request = {**body, "stream": True, "background": True}
        with _translated(), self._http.stream("POST", "/v1/responses", json=request) as response:
            if response.is_error:
                response.read()
            _check(response)
            yield from read_events(response.iter_bytes())

    def cancel(self, response_id: str) -> Answer:
        return Answer(self._post(f"/v1/responses/{response_id}/cancel", {}))

    def _get(self, path: str, **query: Any) -> Json:
        with _translated():
            return _check(self._http.get(path, params=query))

    def _post(self, path: str, body: Json) -> Json:
        with _translated():
            return _check(self._http.post(path, json=body))


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except httpx2.TransportError as error:
        raise LostConnection(f"The connection to the server is lost: {error or type(error).__name__}") from error
    except httpx2.InvalidURL as error:
        raise ChatError(f"That is no address: {error}") from error
    except ValueError as error:  # no JSON
        raise ChatError("The server does not answer as Parley does") from error


def _check(response: httpx2.Response) -> Json:
    if response.is_success:
        if "event-stream" in response.headers.get("content-type", ""):
            return {}
        body: Json = response.json()
        return body
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"The server answered {response.status_code} {response.reason_phrase}"
    raise ChatError(str(message))
