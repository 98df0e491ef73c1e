"""The platform's conversation JSON: messages in order, who speaks in which role, and which turns a user has.

Two forms: a list of messages, each with its `user`; and the chat evaluation's, a tree of messages by id with `actors`,
of which the first branch is followed. The first has no roles: a dataset maps speakers to them (`roles`).
Source: Labelbox, Import conversational text data; the SDK's chat evaluation rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from foundry_pipeline.errors import RowUnavailable, shown

OTHERS = "*"
"""In a mapping of roles: every speaker that it does not name."""

_ROLE_OF_ACTOR = {"human": "user", "model": "assistant", "system": "system"}


class Turn(NamedTuple):
    """One turn of a prompt: role (user, assistant or system) and text; the message's id where it is a recorded one."""

    role: str
    text: str
    message_id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `align` is left or right where the source says so. Ids are unique in a conversation.

    `role` is user, assistant or system where the format itself says it.
    """

    message_id: str
    user_id: str
    user_name: str
    content: str
    align: str | None = None
    can_label: bool = True
    role: str | None = None


def parse_conversation(text: str) -> tuple[Message, ...]:
    """The messages in order. Raises RowUnavailable (`row_not_media`) where `text` is no conversation, saying why."""
    try:
        document = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as err:
        raise _no_conversation(f"not JSON: {type(err).__name__}") from None
    items = document.get("messages") if isinstance(document, dict) else None
    if isinstance(items, dict):
        return tuple(_branch(document, items))
    if not isinstance(items, list):
        raise _no_conversation('expected an object with a list "messages"')
    messages = tuple(_message(item, f"messages[{place}]") for place, item in enumerate(items))
    if len({message.message_id for message in messages}) < len(messages):
        raise _no_conversation("two messages have one messageId")
    return messages


def roles_of(messages: Sequence[Message], roles: Mapping[str, str]) -> tuple[str, ...]:
    """The role of each message. `roles` maps a user id, else a user's name, else `*` to a role.

    Without a mapping it is the format's own role, else the first speaker is the user and every other the assistant.
    Raises RowUnavailable (`row_unknown_speaker`) for a speaker that the mapping leaves out.
    """
    if not roles:
        first = messages[0].user_id if messages else None
        return tuple(message.role or ("user" if message.user_id == first else "assistant") for message in messages)
    return tuple(_mapped(message, roles) for message in messages)


def turns_of(messages: Sequence[Message], roles: Mapping[str, str]) -> list[Turn]:
    """All messages, one turn each, in order. Raises as `roles_of` does."""
    spoken = zip(roles_of(messages, roles), messages, strict=True)
    return [Turn(role, message.content, message.message_id) for role, message in spoken]


def user_turns(messages: Sequence[Message], roles: Mapping[str, str]) -> tuple[str, ...]:
    """The ids of the messages that wait for an answer: the last of each run of a user's messages.

    Raises as `roles_of` does.
    """
    spoken = roles_of(messages, roles)
    return tuple(
        message.message_id
        for at, message in enumerate(messages)
        if spoken[at] == "user" and spoken[at + 1 : at + 2] != ("user",)
    )


def turns_until(
    messages: Sequence[Message], roles: Mapping[str, str], message_id: str, answers: Sequence[str] | None
) -> list[Turn]:
    """The history up to and including a message that waits for an answer.

    With `answers`, the model's own to the user's turns before, they stand in place of what the recorded assistant
    said to them; what it said before the first of them stays. Raises as `roles_of` does.
    """
    own = None if answers is None else iter(answers)
    waiting = set(user_turns(messages, roles))
    history: list[Turn] = []
    answered = False
    for message, role in zip(messages, roles_of(messages, roles), strict=True):
        if not (role == "assistant" and answered and own is not None):
            history.append(Turn(role, message.content, message.message_id))
        if message.message_id == message_id:
            break
        if message.message_id in waiting:
            answered = True
            if own is not None:
                history.append(Turn("assistant", next(own)))
    return history


def _mapped(message: Message, roles: Mapping[str, str]) -> str:
    for name in (message.user_id, message.user_name, OTHERS):
        if name in roles:
            return roles[name]
    known = ", ".join(map(repr, roles))
    seen = f"speaker {shown(message.user_id)} ({shown(message.user_name)})"
    raise RowUnavailable("row_unknown_speaker", f"{seen} has no role; the dataset's roles are those of {known}")


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


def _branch(document: Mapping[str, object], items: Mapping[str, object]) -> Iterator[Message]:
    """From the first root, always the first child: where several models answered, the first one's answer."""
    actors = document.get("actors")
    ids = document.get("rootMessageIds")
    if not isinstance(ids, list):
        raise _no_conversation('expected a list "rootMessageIds" beside messages by id')
    seen: set[str] = set()
    while ids:
        if not isinstance(ids, list) or not isinstance(ids[0], str) or not isinstance(items.get(ids[0]), dict):
            raise _no_conversation(f"expected the id of a message, got {shown(ids)}")
        message_id = ids[0]
        if message_id in seen:
            raise _no_conversation(f"message {shown(message_id)} comes after itself")
        seen.add(message_id)
        item = items[message_id]
        assert isinstance(item, dict)
        yield _message_of_tree(message_id, item, actors)
        ids = item.get("childMessageIds")


def _message_of_tree(message_id: str, item: Mapping[str, object], actors: object) -> Message:
    place = f"messages[{shown(message_id)}]"
    actor_id = _name(item.get("actorId"), f"{place}.actorId")
    actor = actors.get(actor_id) if isinstance(actors, dict) else None
    if not isinstance(actor, dict):
        raise _no_conversation(f"{place}.actorId: there is no actor {shown(actor_id)}")
    about = actor.get("metadata")
    name = about.get("name") if isinstance(about, dict) else None
    role = actor.get("role")
    return Message(
        message_id,
        actor_id,
        name if isinstance(name, str) else "",
        _text_of_parts(item.get("content"), f"{place}.content"),
        role=_ROLE_OF_ACTOR.get(role) if isinstance(role, str) else None,
    )


def _text_of_parts(parts: object, place: str) -> str:
    if not isinstance(parts, list):
        raise _no_conversation(f"{place}: expected a list of parts")
    texts = []
    for at, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise _no_conversation(f"{place}[{at}]: expected a part of type text; others are not read")
        texts.append(_text(part.get("content"), f"{place}[{at}].content"))
    return "\n".join(texts)


def _name(value: object, place: str) -> str:
    """An id. Hand-written files have integers."""
    return _text(str(value) if type(value) is int else value, place)


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise _no_conversation(f"{place}: expected a string")
    return value


def _no_conversation(why: str) -> RowUnavailable:
    return RowUnavailable("row_not_media", f"not a conversation: {why}")
