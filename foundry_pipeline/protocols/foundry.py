"""The document's own protocol: a conversation out, a JSON object keyed by feature name back.

Pure: it opens no connection, sleeps never, reads no environment. What goes around a request (rate, retries, ledger)
is `invoke.py`, how content is read and turned `rendering.py`; what a reply means is `decode.py`.

Source: Labelbox "Custom model integration", Endpoint requests for model tasks. The key names `ontology`,
`inference_params` and `max_tokens` are ours: the document says that they are sent, not how they are called.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from foundry_pipeline.asks import Ask
from foundry_pipeline.home import Run
from foundry_pipeline.rows.conversations import Turn
from foundry_pipeline.rows.html_text import READABLE_TRANSFORM
from foundry_pipeline.rows.media import FRAME_TRANSFORM, UPRIGHT_TRANSFORM, needs_turning

PICTURE_ATTACHMENTS = ("IMAGE", "IMAGE_OVERLAY")
"""The attachment types that are sent where the run asks for it."""

_HERE = uuid.uuid4().hex
"""Stands for content while the rest of the body is rendered; new in every process, so that no text can hold it."""


class FoundryRequests:
    """Renders the requests of one run. Everything but the data row is rendered once."""

    def __init__(self, run: Run) -> None:
        self._run = run
        instructions = run.inference_params.get("prompt")
        has_system = isinstance(instructions, str) and instructions
        self._system = [_as_json(Turn("system", str(instructions)))] if has_system else []
        self._beside: dict[str, object] = {}
        if run.model.ontology is not None:
            self._beside["ontology"] = run.model.ontology.as_json()
        self._beside["inference_params"] = dict(run.inference_params)
        if run.model.max_tokens is not None:
            self._beside["max_tokens"] = run.model.max_tokens
        self._identity = hashlib.sha256(self._run_identity())
        self._around_picture = self._render([Turn("user", "")], 1)
        self._around_text = self._render([Turn("user", _HERE)], 0)

    def call_id(self, ask: Ask) -> str:
        """sha256, hexadecimal, over endpoint, protocol, version, parameters, ontology, prompt and what is asked about.

        Content stands in it as the sha256 of its source, the frames taken and the transform applied, so it need not
        be read again, and a new encoder's bytes are not a new call; an attachment stands in it as its URL or path.
        The secret is no part of it.
        """
        identity = self._identity.copy()
        identity.update(_canonical(self._content_identity(ask)))
        return identity.hexdigest()

    def pictures_body(self, pictures: Sequence[bytes], text: str = "") -> bytes:
        """The request for pictures, in order and as they are to be sent, behind a text if there is one."""
        if len(pictures) == 1 and not text:
            return _filled(self._around_picture, pictures)
        return _filled(self._render([Turn("user", text)], len(pictures)), pictures)

    def text_body(self, text: str, pictures: Sequence[bytes] = ()) -> bytes:
        """The request for a text or an HTML page, with pictures behind it if there are any."""
        if not pictures:
            before, after = self._around_text
            return b"".join((before, _json(text), after))
        return _filled(self._render([Turn("user", text)], len(pictures), has_text=True), pictures)

    def conversation_body(self, turns: Sequence[Turn], pictures: Sequence[bytes] = ()) -> bytes:
        """The request for a conversation, with pictures at the end of its last turn if there are any. A turn says the
        id of its message where the manifest asks for it."""
        if not self._run.model.message_ids:
            turns = [turn._replace(message_id=None) for turn in turns]
        return _filled(self._render(turns, len(pictures), has_text=True), pictures)

    def _run_identity(self) -> bytes:
        model = self._run.model
        return _canonical(
            {
                "endpoint": model.inference_endpoint,
                "protocol": model.protocol,
                "version": model.version,
                "system": self._system,
                **self._beside,
            }
        )

    def _content_identity(self, ask: Ask) -> Mapping[str, object]:
        row = ask.row
        content: dict[str, object] = {"media_type": row.media_type}
        if row.content_sha256 is not None:
            content["sha256"] = row.content_sha256
        else:
            content["row_data"] = row.row_data
        if transforms := self._transforms(ask):
            content["transform"] = "+".join(transforms)
        if self._run.uses_image_attachments and (sent := picture_attachments(ask)):
            content["attachments"] = sent
        if ask.frames:
            content["frames"] = ask.frames
        if row.media_type == "conversational":
            content |= self._conversation_identity(ask)
        return content

    def _transforms(self, ask: Ask) -> list[str]:
        model, row = self._run.model, ask.row
        found = [FRAME_TRANSFORM] if row.media_type == "video" else []
        if row.media_type in ("image", "video") and model.exif != "keep" and needs_turning(row.exif_orientation):
            found.append(UPRIGHT_TRANSFORM)
        if row.media_type == "html" and model.html == "readable":
            found.append(READABLE_TRANSFORM)
        return found

    def _conversation_identity(self, ask: Ask) -> dict[str, object]:
        roles = self._run.dataset.roles
        found: dict[str, object] = {"roles": dict(roles)} if roles else {}
        if self._run.model.message_ids:
            found["message_ids"] = True
        if ask.message_id is not None:
            found |= {"generate": self._run.generate, "answer_to": ask.message_id, "answers": ask.answers}
        return found

    def _render(self, turns: Sequence[Turn], pictures: int, *, has_text: bool = False) -> list[bytes]:
        """The body in pieces: a picture, as a JSON string, is to stand between each two.

        An empty text is no part of a turn, unless `has_text`.
        """
        prompt = [*self._system, *(_as_json(turn, has_text=has_text) for turn in turns)]
        if turns and pictures:
            prompt[-1]["parts"] += [{"image": _HERE}] * pictures
        body = {"prompt": prompt, **self._beside}
        return _json(body).split(_json(_HERE))


def _as_json(turn: Turn, *, has_text: bool = False) -> dict[str, Any]:
    said = {"role": turn.role, "parts": [{"text": turn.text}] if turn.text or has_text else []}
    return said if turn.message_id is None else said | {"message_id": turn.message_id}


def picture_attachments(ask: Ask) -> list[tuple[str, str]]:
    """(type, value) of the attachments that are pictures, in order."""
    return [(each.type, each.value) for each in ask.row.attachments if each.type in PICTURE_ATTACHMENTS]


def _filled(pieces: Sequence[bytes], pictures: Sequence[bytes]) -> bytes:
    encoded = (b'"%b"' % binascii.b2a_base64(picture, newline=False) for picture in pictures)
    return b"".join(part for pair in zip_longest(pieces, encoded, fillvalue=b"") for part in pair)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="surrogatepass")


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str).encode()
