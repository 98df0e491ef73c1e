"""The platform's conversation JSON: a list of messages, each with a speaker.

Who speaks as what in a prompt is the protocol's matter: the format has no roles.
Source: Labelbox, Import conversational text data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from foundry_pipeline.errors import RowUnavailable


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `align` is left or right where the source says so. Ids are unique in a conversation."""

    message_id: str
    user_id: str
    user_name: str
    content: str
    align: str | None = None
    can_label: bool = True


def parse_conversation(text: str) -> tuple[Message, ...]:
    """The messages in order. Raises RowUnavailable (`row_not_media`) where `text` is no conversation, saying why."""
    try:
        document = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as err:
        raise _no_conversation(f"not JSON: {type(err).__name__}") from None
    items = document.get("messages") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise _no_conversation('expected an object with a list "messages"')
    messages = tuple(_message(item, f"messages[{place}]") for place, item in enumerate(items))
    if len({message.message_id for message in messages}) < len(messages):
        raise _no_conversation("two messages have one messageId")
    return messages


def _message(item: object, place: str) -> Message:
    user = item.get("user") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(user, dict):
        raise _no_conversation(f"{place}: expected an object with a user")
    align = item.get("align")
    return Message(
        message_id=_name(item.get("messageId"), f"{place}.messageId"),
        user_id=_name(user.get("userId"), f"{place}.user.userId"),
        user_name=str(user.get("name") or ""),
        content=_text(item.get("content"), f"{place}.content"),
        align=align if isinstance(align, str) else None,
        can_label=item.get("canLabel") is not False,
    )


def _name(value: object, place: str) -> str:
    """An id. Hand-written files have integers."""
    return _text(str(value) if type(value) is int else value, place)


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise _no_conversation(f"{place}: expected a string")
    return value


def _no_conversation(why: str) -> RowUnavailable:
    return RowUnavailable("row_not_media", f"not a conversation: {why}")
