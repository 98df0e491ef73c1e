"""XML of exports: always through a serialiser, and only characters that XML can hold."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from foundry_pipeline.exports.annotated import Prediction
from foundry_pipeline.exports.tally import Change, Tally

REPLACEMENT = "\ufffd"
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Source: XML 1.0, fifth edition, section 2.2."""


def xml_safe(text: str) -> str:
    """The text with what XML cannot hold replaced: U+FFFD for a character, a line feed for every other line end."""
    return _ILLEGAL.sub(REPLACEMENT, text).replace("\r\n", "\n").replace("\r", "\n")


def count_unsafe(prediction: Prediction, texts: list[str], tally: Tally) -> None:
    """Count the prediction as changed where XML cannot hold all of these texts of it."""
    if any(text != xml_safe(text) for text in texts):
        tally.change(prediction, Change.CHARACTERS_REPLACED)


def child(parent: ET.Element, name: str, text: object = "", /, **attributes: object) -> ET.Element:
    """A new element at the end of `parent`. Numbers are written as Python does, texts made safe."""
    element = ET.SubElement(parent, name, {key: xml_safe(str(value)) for key, value in attributes.items()})
    element.text = xml_safe(str(text)) or None
    return element


def xml_bytes(root: ET.Element, indent: str = "  ", level: int = 0) -> bytes:
    """The element on lines of its own, in UTF-8, without a declaration."""
    ET.indent(root, indent, level)
    return f"{indent * level}{ET.tostring(root, encoding='unicode')}\n".encode()
