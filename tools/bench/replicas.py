"""What several replicas would do with a load of conversations: a simulation, step by step of each engine.

python -m tools.bench.replicas --plot docs/scaling.png

Arrivals, prompts and turns come from a seed. The times of a step are measured ones. Requests are routed by the code
that routes them in the service.
"""

import heapq
import json
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Annotated

import typer
from rich.console import Console

from services import rendezvous

BACKGROUND = "background"
PATIENCE_S = 2.0  # after which a replica without room claims, too


@dataclass(frozen=True, slots=True)
class Times:
    """Of a step, in seconds: the default model on two cores, as docs/engine.md has them. Its gaps of 9.8, 13.2 and
    29.2 ms at 1, 8 and 32 streams, and times to first token of 91 and 252 ms at 8 and 32."""

    step: float = 0.0092
    sequence: float = 0.00063  # for each that decodes
    token: float = 0.0002  # of a prompt
    slots: int = 32
    chunk: int = 512
    cache: int = 32 * 2048  # tokens


@dataclass(frozen=True, slots=True)
class Load:
    """For each replica there is as much of it."""

    conversations: float = 0.7  # that begin in a second
    turns: float = 5.0  # of a conversation, on average
    pause: float = 10.0  # seconds between an answer and the next question, on average
    system: int = 300  # tokens
    first: float = 250.0  # tokens of a first question, on average
    question: float = 40.0
    answer: float = 90.0
    burst: float = 60.0  # seconds between two bursts of background requests, on average
    burst_size: int = 24


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    affinity: bool
    claiming: bool


POLICIES = (
    Policy("neither", affinity=False, claiming=False),
    Policy("claiming", affinity=False, claiming=True),
    Policy("affinity", affinity=True, claiming=False),
    Policy("both", affinity=True, claiming=True),
)


@dataclass(slots=True, eq=False)
class Request:
    conversation: str  # empty: a background request
    at: float
    prompt: int
    cached: int = 0
    answer: int = 1
    left: int = 0  # tokens of the prompt to be computed
    written: int = 0
    first_at: float = 0.0
    ended_at: float = 0.0


@dataclass(slots=True, eq=False)
class Replica:
    name: str
    times: Times
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    prefixes: "OrderedDict[str, int]" = field(default_factory=OrderedDict)  # tokens held, the least recent first
    held: int = 0
    is_stepping: bool = False

    @property
    def load(self) -> int:
        return len(self.waiting) + len(self.running)

    def admit(self) -> None:
        while self.waiting and len(self.running) < self.times.slots:
            request = self.waiting.popleft()
            request.cached = min(self.prefixes.get(request.conversation, 0), request.prompt - 1)
            request.left = request.prompt - request.cached
            self.running.append(request)

    def step(self, now: float) -> tuple[float, list[Request]]:
        """The time at which it ends, and what ends with it."""
        self.admit()
        budget, decoding = self.times.chunk, [request for request in self.running if not request.left]
        for request in self.running:
            taken = min(request.left, budget)
            request.left -= taken
            budget -= taken
        computed = self.times.chunk - budget
        end = now + self.times.step + computed * self.times.token + len(decoding) * self.times.sequence
        finished = [request for request in decoding if self._write(request, end)]
        for request in finished:
            self.running.remove(request)
            self._keep(request)
        return end, finished

    def _write(self, request: Request, end: float) -> bool:
        request.first_at = request.first_at or end
        request.written += 1
        return request.written >= request.answer

    def _keep(self, request: Request) -> None:
        if not request.conversation:
            return
        self.held -= self.prefixes.pop(request.conversation, 0)
        self.prefixes[request.conversation] = request.prompt + request.answer
        self.held += request.prompt + request.answer
        while self.held > self.times.cache:
            self.held -= self.prefixes.popitem(last=False)[1]


@dataclass(frozen=True, slots=True)
class Result:
    replicas: int
    policy: str
    prefix_hits: float  # share of prompt tokens that were in the cache
    first_token_p50_s: float
    first_token_p95_s: float
    background_p95_s: float  # until the end of the answer
    tokens_per_s: float


class Simulation:
    """Events are a replica's next step, and a request's arrival."""

    def __init__(self, replicas: int, policy: Policy, load: Load, times: Times, seconds: float, seed: int) -> None:
        self._random = random.Random(seed)
        self._policy = policy
        self._load = load
        self._seconds = seconds
        self._replicas = [Replica(str(index), times) for index in range(replicas)]
        self._unclaimed: deque[Request] = deque()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._done: list[Request] = []
        self._rates = {"conversation": load.conversations * replicas, BACKGROUND: replicas / load.burst}

    def run(self) -> Result:
        for kind, rate in self._rates.items():
            for number, at in enumerate(self._arrivals(rate)):
                if kind == BACKGROUND:
                    self._at(at, self._burst)
                else:
                    self._at(at, self._conversation(f"{number}"))
        while self._events:
            now, _, happen = heapq.heappop(self._events)
            if now > self._seconds:
                break
            happen(now)
        return self._result()

    def _arrivals(self, rate: float) -> Iterator[float]:
        at = self._random.expovariate(rate)
        while at < self._seconds:
            yield at
            at += self._random.expovariate(rate)

    def _at(self, when: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, self._random.getrandbits(60), happen))

    def _conversation(self, name: str) -> Callable[[float], None]:
        size = self._load.system + self._tokens(self._load.first)
        return lambda now: self._send(Request(name, now, size, answer=self._tokens(self._load.answer)))

    def _burst(self, now: float) -> None:
        """Sent by one client to one replica, or to those that its requests' keys belong to."""
        target = self._random.choice(self._replicas)
        for _ in range(self._load.burst_size):
            size = self._load.system + self._tokens(self._load.first)
            request = Request("", now, size, answer=self._tokens(self._load.answer))
            if self._policy.claiming and target.load >= target.times.slots:
                self._unclaimed.append(request)
            else:
                self._give(target, request, now)
        self._claim(now)
        self._at(now + PATIENCE_S, self._claim_anyway)

    def _tokens(self, mean: float) -> int:
        return 1 + round(self._random.expovariate(1 / mean))

    def _send(self, request: Request) -> None:
        key = request.conversation if self._policy.affinity else f"{self._random.getrandbits(60)}"
        ranked = rendezvous.ranked(key.encode(), self._replicas, lambda each: each.name, lambda each: each.load)
        target = ranked[0] if self._policy.affinity else min(ranked, key=lambda each: each.load)
        self._give(target, request, request.at)

    def _give(self, replica: Replica, request: Request, now: float) -> None:
        replica.waiting.append(request)
        if not replica.is_stepping:
            replica.is_stepping = True
            self._step(replica, now)

    def _claim(self, now: float) -> None:
        for replica in self._replicas:
            while self._unclaimed and not replica.waiting and replica.load < replica.times.slots:
                self._give(replica, self._unclaimed.popleft(), now)

    def _claim_anyway(self, now: float) -> None:
        while self._unclaimed and self._unclaimed[0].at <= now - PATIENCE_S:
            self._give(min(self._replicas, key=lambda each: each.load), self._unclaimed.popleft(), now)

    def _step(self, replica: Replica, now: float) -> None:
        end, finished = replica.step(now)
        self._at(end, lambda now: self._stepped(replica, finished, now))

    def _stepped(self, replica: Replica, finished: Sequence[Request], now: float) -> None:
        for request in finished:
            self._finish(request, now)
        if finished and self._unclaimed:
            self._claim(now)
        replica.is_stepping = replica.load > 0
        if replica.is_stepping:
            self._step(replica, now)

    def _finish(self, request: Request, now: float) -> None:
        self._done.append(request)
        request.ended_at = now
        if request.conversation and self._random.random() < 1 - 1 / self._load.turns:
            size = request.prompt + request.answer + self._tokens(self._load.question)
            pause = self._random.expovariate(1 / self._load.pause)
            answer = self._tokens(self._load.answer)
            self._at(now + pause, lambda at: self._send(Request(request.conversation, at, size, answer=answer)))

    def _result(self) -> Result:
        chats = [each for each in self._done if each.conversation]
        first = _percentiles([each.first_at - each.at for each in chats])
        background = _percentiles([each.ended_at - each.at for each in self._done if not each.conversation])
        return Result(
            len(self._replicas),
            self._policy.name,
            round(sum(each.cached for each in chats) / sum(each.prompt for each in chats), 3),
            round(first[49], 3),
            round(first[94], 3),
            round(background[94], 2),
            round(sum(each.written for each in self._done) / self._seconds),
        )


def _percentiles(values: Sequence[float]) -> list[float]:
    return quantiles(values, n=100)


CAPTION = "simulated, with the step times of SmolLM2-135M-Instruct on two cores of an AMD EPYC"


def plot(results: Sequence[Result], path: Path) -> None:
    from matplotlib.figure import Figure

    panels = {
        "prefix_hits": ("prompt tokens found in the cache", 100, "%"),
        "first_token_p95_s": ("time to first token, p95", 1, "s"),
        "background_p95_s": ("background answers, p95", 1, "s"),
    }
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels))
    sizes = sorted({each.replicas for each in results})
    colours = {"neither": "#9aa5b1", "claiming": "#e0a030", "affinity": "#3b7dd8", "both": "#1b9e63"}
    for axis, (name, (title, factor, unit)) in zip(axes, panels.items(), strict=True):
        for index, policy in enumerate(colours):
            heights = [
                getattr(each, name) * factor
                for size in sizes
                for each in results
                if (each.replicas, each.policy) == (size, policy)
            ]
            places = [place + (index - 1.5) * 0.2 for place in range(len(sizes))]
            axis.bar(places, heights, width=0.19, color=colours[policy], label=policy)
        axis.set_xticks(range(len(sizes)), [f"{size} replicas" for size in sizes])
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)
    figure.supxlabel(CAPTION, fontsize=8, color="#475569")
    figure.savefig(path, dpi=110)


def main(
    seconds: Annotated[float, typer.Option(min=60, help="Simulated.")] = 600,
    seed: int = 1,
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("build/simulation.json"),
    picture: Annotated[Path | None, typer.Option("--plot", help="Where the picture goes.")] = None,
) -> None:
    """Simulate 2, 8 and 64 replicas with and without affinity and claiming."""
    results = [
        Simulation(size, policy, Load(), Times(), seconds, seed).run() for size in (2, 8, 64) for policy in POLICIES
    ]
    found = [asdict(each) for each in results]
    Console().print_json(json.dumps(found))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2))
    if picture:
        plot(results, picture)


if __name__ == "__main__":
    typer.run(main)
