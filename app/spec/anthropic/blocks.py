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
from schemas.file_schema import MAX_FILENAME

JsonObject = dict[str, Any]


def parts(block: Block, place: str) -> list[JsonObject]:
    """What there is to read or to see in it. `place`: how errors name it."""
    match block:
        case TextBlock(text=text):
            return [_text(text)]
        case ImageBlock():
            return [_image(block)]
        case DocumentBlock():
            return list(_document(block, place))
        case SearchResultBlock():
            return [_text("\n".join([block.title, block.source, "", *(each.text for each in block.content), "\n"]))]
        case ToolReferenceBlock(tool_name=name):
            return [_text(f"The tool {name} can be called now.\n")]
        case CompactionBlock(content=summary):
            return [_text(summary)] if summary else []
        case ContainerUploadBlock():
            raise UnsupportedParameter(place, "is for programs that run here, and none do")
    return []


def _text(text: str) -> JsonObject:
    return {"type": "text", "text": text}


def _image(block: ImageBlock) -> JsonObject:
    match block.source:
        case Base64Source(media_type=kind, data=data):
            return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
        case UrlSource(url=url):
            return {"type": "image_url", "image_url": {"url": url}}
        case FileSource(file_id=file_id):
            return {"type": "image_url", "image_url": {"file_id": file_id}}


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
            yield from [_text(f"{block.context}\n\n")] if block.context else []
            name = {"filename": block.title[:MAX_FILENAME]} if block.title else {}
            yield {"type": "file", "file": _file(source) | name}


def _file(source: PdfSource | UrlSource | FileSource) -> JsonObject:
    match source:
        case PdfSource(data=data):
            return {"file_data": data}
        case UrlSource(url=url):
            return {"file_url": url}
        case FileSource(file_id=file_id):
            return {"file_id": file_id}


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
