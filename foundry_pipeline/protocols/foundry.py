"""The document's own protocol: a conversation out, a JSON object keyed by feature name back.

Pure: it opens no connection, sleeps never, reads no environment. What goes around a request (rate, retries, ledger)
is `invoke.py`; what a reply means is `decode.py`.

Source: Labelbox "Custom model integration", Endpoint requests for model tasks. The key names `ontology`,
`inference_params` and `max_tokens` are ours: the document says that they are sent, not how they are called.
"""

from __future__ import annotations

import binascii
import hashlib
import json
from collections.abc import Sequence

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.home import Run
from foundry_pipeline.rows.conversations import Message, parse_conversation
from foundry_pipeline.rows.media import UPRIGHT_TRANSFORM, needs_turning

Part = dict[str, str]
Turn = dict[str, object]

_HERE = "\x00here\x00"
"""Stands for the content while the rest of the body is rendered; JSON escapes NUL, so no text can hold it."""


class FoundryRequests:
    """Renders the requests of one run. Everything but the data row is rendered once."""

    def __init__(self, run: Run) -> None:
        self._media_type = run.dataset.media_type
        instructions = run.inference_params.get("prompt")
        self._system: list[Turn] = (
            [{"role": "system", "parts": [{"text": instructions}]}]
            if isinstance(instructions, str) and instructions
            else []
        )
        self._beside: dict[str, object] = {}
        if run.model.ontology is not None:
            self._beside["ontology"] = run.model.ontology.as_json()
        self._beside["inference_params"] = dict(run.inference_params)
        if run.model.max_tokens is not None:
            self._beside["max_tokens"] = run.model.max_tokens
        self._identity = hashlib.sha256(self._run_identity(run))
        self._around_image = self._split_at("image")
        self._around_text = self._split_at("text")

    def call_id(self, row: DataRow) -> str:
        """sha256, hexadecimal, over endpoint, protocol, version, parameters, ontology, prompt and the row's content.

        A picture stands in it as the sha256 of its source and the transform applied, so it need not be read again,
        and a new encoder's bytes are not a new call. The secret is no part of it.
        """
        content: dict[str, object] = {"media_type": row.media_type}
        if row.content_sha256 is not None:
            content["sha256"] = row.content_sha256
        else:
            content["row_data"] = row.row_data
        if self._media_type == "image" and needs_turning(row.exif_orientation):
            content["transform"] = UPRIGHT_TRANSFORM
        identity = self._identity.copy()
        identity.update(_canonical(content))
        return identity.hexdigest()

    def image_body(self, image: bytes) -> bytes:
        """The request for a picture, given the bytes to send."""
        before, after = self._around_image
        return b"".join((before, b'"', binascii.b2a_base64(image, newline=False), b'"', after))

    def text_body(self, text: str) -> bytes:
        """The request for a text or an HTML page."""
        before, after = self._around_text
        return b"".join((before, _json(text), after))

    def conversation_body(self, text: str) -> bytes:
        """The request for the platform's conversation JSON: one turn a message, in order.

        The first speaker is `user`, every other speaker `assistant`. Raises RowUnavailable where it is not one.
        """
        return self._render(conversation_turns(parse_conversation(text)))

    def _run_identity(self, run: Run) -> bytes:
        return _canonical(
            {
                "endpoint": run.model.inference_endpoint,
                "protocol": run.model.protocol,
                "version": run.model.version,
                "system": self._system,
                **self._beside,
            }
        )

    def _render(self, turns: Sequence[Turn]) -> bytes:
        body = {"prompt": [*self._system, *turns], **self._beside}
        return _json(body)

    def _split_at(self, part: str) -> tuple[bytes, bytes]:
        """What stands around the content of a request that is one part."""
        before, after = self._render([{"role": "user", "parts": [{part: _HERE}]}]).split(_json(_HERE))
        return before, after


def conversation_turns(messages: Sequence[Message]) -> list[Turn]:
    """Messages as turns. The platform has no role field: who speaks first is taken for the user."""
    first = messages[0].user_id if messages else None
    return [
        {"role": "user" if message.user_id == first else "assistant", "parts": [{"text": message.content}]}
        for message in messages
    ]


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="surrogatepass")


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str).encode()
