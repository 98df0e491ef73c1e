"""A request's JSON body, read strictly: the conversation, the parameters, and the features asked for.

Source: Labelbox "Custom model integration", Endpoint requests. Beside `prompt`, `inference_params` and `ontology`
are read where they are sent; `max_tokens` and keys this endpoint does not know are not its business.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Object = Mapping[str, object]
ROLES = ("system", "user", "assistant")


class RequestError(ValueError):
    """The body is not a request of the protocol; the message says where and what was expected."""


class ContentError(ValueError):
    """The request is sound, but its picture is not base64; the message says where."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """One turn's texts, in one string. `message_id` is there where the request says it."""

    role: str
    text: str
    message_id: str | None = None


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One call. `texts` and `pictures` are the parts of the last user turn, in order; pictures still in base64.
    `spoken` are all turns but the system's.

    `features` are the names the request's ontology asks for; None where it has no ontology: all of them.
    """

    texts: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    params: Object = field(default_factory=dict)
    features: frozenset[str] | None = None
    spoken: tuple[Spoken, ...] = ()

    def text(self) -> str:
        """The data row's text: the last text part, because a prompt parameter stands before it."""
        if not self.texts:
            raise RequestError("prompt: expected a text part in the last user turn")
        return self.texts[-1]

    def picture(self) -> bytes:
        """The data row's picture, encoded: the first image part; attachments come after it."""
        if not self.pictures:
            raise RequestError("prompt: expected an image part in the last user turn")
        try:
            return base64.b64decode(self.pictures[0], validate=True)
        except (binascii.Error, ValueError) as err:
            raise ContentError("prompt: the image is not base64") from err


def read_request(body: bytes) -> ModelRequest:
    """The call in a body. Raises RequestError."""
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as err:
        raise RequestError("expected a JSON object; got what is not JSON") from err
    if not isinstance(payload, dict):
        raise RequestError(f"expected a JSON object; got {_kind(payload)}")
    prompt = _turns(payload.get("prompt"))
    texts, pictures = _parts(_last_user_turn(prompt))
    params = _object(payload, "inference_params") or {}
    return ModelRequest(texts, pictures, params, _features(payload), tuple(map(_spoken, prompt)))


def _spoken(turn: Object) -> Spoken:
    texts, _ = _parts(turn)
    message_id = turn.get("message_id")
    return Spoken(str(turn["role"]), "\n".join(texts), message_id if isinstance(message_id, str) else None)


def _turns(prompt: object) -> list[Object]:
    if not isinstance(prompt, list) or not all(isinstance(turn, dict) for turn in prompt):
        raise RequestError('prompt: expected a list of {"role": ..., "parts": [...]}')
    for place, turn in enumerate(prompt):
        if turn.get("role") not in ROLES:
            raise RequestError(f"prompt[{place}].role: expected one of {', '.join(ROLES)}")
    return prompt


def _last_user_turn(prompt: Sequence[Object]) -> Object:
    turns = [turn for turn in prompt if turn["role"] == "user"]
    if not turns:
        raise RequestError("prompt: expected a turn of the role user")
    return turns[-1]


def _parts(turn: Object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    parts = turn.get("parts")
    if not isinstance(parts, list):
        raise RequestError("prompt: expected a list of parts in every turn")
    found: dict[str, list[str]] = {"text": [], "image": []}
    for place, part in enumerate(parts):
        kinds = [kind for kind in found if isinstance(part, dict) and isinstance(part.get(kind), str)]
        if len(kinds) != 1:
            raise RequestError(f"prompt, a turn's parts[{place}]: expected one of text and image, a string")
        found[kinds[0]].append(_unicode(part[kinds[0]]))
    return tuple(found["text"]), tuple(found["image"])


def _unicode(text: str) -> str:
    """The string, if it can be written as UTF-8: JSON lets half a surrogate pair through, the models do not."""
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise RequestError("prompt: a string holds half a surrogate pair") from err
    return text


def _features(payload: Object) -> frozenset[str] | None:
    ontology = _object(payload, "ontology")
    if ontology is None:
        return None
    names = set()
    for key in ("tools", "classifications"):
        features = ontology.get(key) or []
        if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
            raise RequestError(f"ontology.{key}: expected a list of objects")
        names |= {str(feature.get("name")) for feature in features}
    return frozenset(names)


def _object(payload: Object, key: str) -> Object | None:
    value = payload.get(key)
    if value is not None and not isinstance(value, dict):
        raise RequestError(f"{key}: expected an object; got {_kind(value)}")
    return value


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
