"""gpt-oss: an answer is a row of messages, each with a header that names its channel and whom it is to.

`<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>`, or at the end a call:
`<|channel|>commentary to=functions.name <|constrain|>json<|message|>{…}<|call|>`. The channel `analysis` has thoughts,
`final` the content, `commentary` what is said ahead of a call.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from services.chat.formats.base import CallRule, OutputFormat, ThinkingTags
from services.chat.formats.harmony_messages import (
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    NAMESPACE,
    START,
    MessageCall,
    MessageParser,
)
from services.chat.formats.lark_text import lark, schema_of, text_rules
from services.chat.parsing.call_writer import CallWriter
from services.chat.parsing.scanner import Scanner

MAX_EARLIER = 8  # messages ahead of what is forced: a small model would else think for ever


class HarmonyAnswer:
    opening = f"{START}assistant"
    thinking = ThinkingTags(f"{CHANNEL}analysis{MESSAGE}", END)
    efforts: Mapping[str, str] = MappingProxyType(
        {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
    )
    content = (CHANNEL, "final", MESSAGE)

    @property
    def earlier(self) -> str:
        channel, message, end, start = (lark([each]) for each in (CHANNEL, MESSAGE, END, START))
        return f'({channel} ("analysis" | "commentary") {message} ...{end} {start} "assistant"){{0,{MAX_EARLIER}}}'

    def parser(self, format: OutputFormat, index: int) -> MessageParser:
        return MessageParser(format, index)


class Harmony:
    name = "harmony"
    answer = HarmonyAnswer()
    marker = ""
    before = (CHANNEL, f"commentary to={NAMESPACE}")
    between: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    bare = False
    unmarked = ""
    text_end = ""

    def detect(self, template: str) -> bool:
        return CHANNEL in template and MESSAGE in template

    def parser(self, scanner: Scanner, calls: CallWriter) -> MessageCall:
        return MessageCall(scanner, calls)

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        begin = "".join(self.before)
        return "".join(f"{begin}{name} {CONSTRAIN}json{MESSAGE}{arguments}" for name, arguments in calls)

    def example(self) -> str:
        return self.write([("NAME", '{"PARAMETER": VALUE}')])

    def call_id(self, id: str, name: str, place: int) -> str:
        return id

    def call_rules(self, rule: CallRule) -> list[str]:
        arguments = f"{rule.name}-arguments"
        header = lark([f"{rule.function.name} ", CONSTRAIN, "json", MESSAGE])
        return [f"{rule.name}: {header} {arguments}", f"{arguments}: %json {schema_of(rule.function)}"]

    def text_begin(self, name: str) -> str:
        return name + MESSAGE

    def text_rules(self, rule: CallRule) -> list[str]:
        assert rule.text
        text = f"{rule.name}-text"
        return [f"{rule.name}: {lark([rule.function.name, MESSAGE])} {text}", *text_rules(text, rule.text, rule.param)]


HARMONY = Harmony()
