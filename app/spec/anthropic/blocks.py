"""Blocks of Anthropic's contents -> parts of a chat completion's messages, and their words."""

import json
from collections.abc import Iterator
from typing import Any

from app.spec import UnsupportedParameter
from schemas.anthropic_block_schema import (
    Base64Source,
    Block,
    CompactionBlock,
    ContainerUploadBlock,
    ContentSource,
    DocumentBlock,
    FileSource,
    ImageBlock,
    PdfSource,
    SearchResultBlock,
    ServerResultBlock,
    TextBlock,
    TextSource,
    ToolReferenceBlock,
    ToolUseBlock,
    UrlSource,
)

JsonObject = dict[str, Any]
UNREAD = {
    PdfSource: "is a PDF or the like: documents are read as 'text' or as 'content'",
    UrlSource: "is a URL: documents are read as 'text' or as 'content'",
    FileSource: "is a file: none are kept here",
}


def parts(block: Block, place: str) -> list[JsonObject]:
    """What there is to read or to see in it. `place`: how errors name it."""
    match block:
        case TextBlock(text=text):
            return [_text(text)]
        case ImageBlock():
            return [_image(block, place)]
        case DocumentBlock():
            return list(_document(block, place))
        case SearchResultBlock():
            return [_text("\n".join([block.title, block.source, "", *(each.text for each in block.content), "\n"]))]
        case ToolReferenceBlock(tool_name=name):
            return [_text(f"The tool {name} can be called now.\n")]
        case CompactionBlock(content=summary):
            return [_text(summary)] if summary else []
        case ContainerUploadBlock():
            raise UnsupportedParameter(place, UNREAD[FileSource])
    return []


def _text(text: str) -> JsonObject:
    return {"type": "text", "text": text}


def _image(block: ImageBlock, place: str) -> JsonObject:
    match block.source:
        case Base64Source(media_type=kind, data=data):
            return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
        case UrlSource(url=url):
            return {"type": "image_url", "image_url": {"url": url}}
    raise UnsupportedParameter(f"{place}.source", UNREAD[FileSource])


def _document(block: DocumentBlock, place: str) -> Iterator[JsonObject]:
    about = [f"Document: {block.title}"] if block.title else []
    about += [block.context] if block.context else []
    match block.source:
        case TextSource(data=text):
            yield _text("\n\n".join([*about, text, ""]))
        case ContentSource(content=content):
            yield _text("\n\n".join([*about, ""]))
            for index, each in enumerate(content):
                yield from parts(each, f"{place}.source.content.{index}")
            yield _text("\n\n")
        case source:
            raise UnsupportedParameter(f"{place}.source", UNREAD[type(source)])


def call(block: ToolUseBlock) -> JsonObject:
    function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
    return {"id": block.id, "type": "function", "function": function}


def result(block: ServerResultBlock) -> str:
    """What a tool of another server has returned, in words."""
    found = block.content
    if isinstance(found, str):
        return found
    if isinstance(found, list) and all(_is_text(each) for each in found):
        return "\n".join(each["text"] for each in found)
    return json.dumps(_readable(found), ensure_ascii=False)


def _is_text(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") == "text" and isinstance(value.get("text"), str)


def _readable(value: object) -> object:
    """Without what is sealed or in base64."""
    if isinstance(value, list):
        return [_readable(each) for each in value]
    if not isinstance(value, dict):
        return value
    is_binary = value.get("type") == "base64"
    kept = {name: each for name, each in value.items() if not name.startswith("encrypted_")}
    return {name: _readable(each) for name, each in kept.items() if not (is_binary and name == "data")}
