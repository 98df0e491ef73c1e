"""The platform's conversation JSON: a list of messages, each with a speaker."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from foundry_pipeline.errors import RowUnavailable


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `align` is left or right where the source says so."""

    message_id: str
    user_id: str
    user_name: str
    content: str
    align: str | None = None
    can_label: bool = True


def parse_conversation(text: str) -> tuple[Message, ...]:
    """The messages in order. Raises RowUnavailable (`row_not_media`) where `text` is not a conversation.

    Source: Labelbox, Import conversational text data.
    """
    try:
        return tuple(_message(item) for item in json.loads(text)["messages"])
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise RowUnavailable("row_not_media", f"not a conversation: {type(err).__name__} {err}"[:200]) from None


def _message(item: dict[str, Any]) -> Message:
    user = item["user"]
    return Message(
        message_id=str(item["messageId"]),
        user_id=str(user["userId"]),
        user_name=str(user.get("name", "")),
        content=str(item["content"]),
        align=item.get("align"),
        can_label=bool(item.get("canLabel", True)),
    )
