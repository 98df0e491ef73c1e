"""`model.yaml` -> Manifest: every field of the document, typed and checked, all problems at once.

Source: Labelbox "Custom model integration", Create manifest files; the keys the document lacks are in the README.
The endpoint and its secret are read by `endpoint_source.py`, the ontology by `ontology_source.py`; the parameters'
schema is checked by `params.py`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundry_pipeline.config import endpoint_source
from foundry_pipeline.config.fields import (
    Block,
    Reader,
    choice,
    flag,
    list_of,
    number,
    one_of,
    refuse,
    text,
    whole,
    written,
)
from foundry_pipeline.config.money import Money, money
from foundry_pipeline.config.ontology_source import KIND_ALIASES, kinds_of, media_type, read_ontology
from foundry_pipeline.config.params import params_path, schema_faults
from foundry_pipeline.config.secrets import Auth, SecretRef
from foundry_pipeline.config.video_source import FRAME_FIELDS, check_frames
from foundry_pipeline.config.yaml_source import Findings, Item, read_yaml
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.ontology import FeatureKind, Ontology

__all__ = ["PROTOCOLS", "Auth", "Manifest", "SecretRef", "load_manifest", "manifest_of", "slug"]

PROTOCOLS = ("foundry",)
RESERVED_IN_VIDEO = "frames"
"""The key of a reply that holds a video's frames; a feature of that name could not be told from it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One model behind one endpoint.

    `key` is `name` slugged for asset keys, folders and file names. `inference_endpoint` is resolved: no `${...}` left.
    `allowed_asset_types` and `allowed_feature_kinds` are empty where the manifest does not say.
    `params_schema` is a JSON Schema object; `{}` where the manifest has none. Times are seconds.
    A value `env:NAME` in `headers` is a reference, read at the moment of sending.
    `cost_per_call` is what one request costs, whatever it brings.

    What the model sees of a data row: `exif` is `upright` (a picture is turned as its EXIF orientation says) or `keep`
    (its pixels as they are stored, whatever their mark); `html` is `source` or `readable` (the visible text). Of a
    video, `frames_per_second` or the numbers in `frames`, unless the run says otherwise, `frames_per_call` at a time.
    With `message_ids`, each turn of a conversation has its message's id beside role and parts.
    """

    name: str
    key: str
    file: str
    inference_endpoint: str
    requests_per_second: float
    secret: SecretRef | None = None
    description: str = ""
    readme: str = ""
    allowed_asset_types: tuple[str, ...] = ()
    allowed_feature_kinds: tuple[FeatureKind, ...] = ()
    ontology: Ontology | None = None
    params_schema: Mapping[str, object] = field(default_factory=dict)
    max_tokens: int | None = None
    version: str | None = None
    protocol: str = "foundry"
    auth: Auth = field(default_factory=Auth)
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 120.0
    max_concurrency: int | None = None
    max_attempts: int = 8
    burst: int = 1
    cost_per_call: Money | None = None
    exif: str = "upright"
    html: str = "source"
    frames_per_second: float | None = None
    frames: tuple[int, ...] = ()
    frames_per_call: int = 1
    message_ids: bool = False

    def feature_kinds(self) -> tuple[FeatureKind, ...]:
        """The kinds a reply may hold: the ontology's own where there is one, else the allowed ones, else all.

        The document's own example allows text, radio and checklist and has rectangles in its ontology.
        """
        if self.ontology is not None:
            return tuple(kinds_of(self.ontology))
        return self.allowed_feature_kinds or tuple(FeatureKind)

    def media_types(self) -> tuple[str, ...]:
        """The media types of data rows the model takes; empty where the manifest does not say."""
        media = self.ontology.media_type if self.ontology is not None else None
        return self.allowed_asset_types or ((media,) if media else ())


def _feature_kind(item: Item, found: Findings) -> FeatureKind | None:
    word = choice([kind.value for kind in FeatureKind], aliases=KIND_ALIASES)(item, found)
    return None if word is None else FeatureKind(word)


# The bounds leave room for every sane use and stop slips of the pen, such as milliseconds for seconds.
_PLAIN_FIELDS: Mapping[str, Reader[Any]] = {
    "description": text(10_000, prose=True),
    "readme": text(200_000, prose=True),
    "allowed_asset_types": list_of(media_type),
    "allowed_feature_kinds": list_of(_feature_kind),
    "max_tokens": whole(1, 100_000_000),
    "version": written(200),
    "protocol": choice(PROTOCOLS),
    "auth": endpoint_source.auth,
    "timeout_s": number(above=0, most=3600),
    "max_concurrency": whole(1, 1024),
    "max_attempts": whole(1, 100),
    "burst": whole(1, 1000),
    "cost_per_call": money(most=10_000),
    "exif": choice(("upright", "keep")),
    "html": choice(("source", "readable")),
    **FRAME_FIELDS,
    "frames_per_call": whole(1, 256),
    "message_ids": flag,
}


def load_manifest(path: Path, environ: Mapping[str, str]) -> Manifest:
    """The manifest in this file. Raises ConfigError with all its problems, each with file, line and `$.path`.

    `environ` is asked for the `${NAME}` of the endpoint, and whether a bare word in `secrets` is a variable's name.
    """
    found = Findings(str(path))
    root = read_yaml(path, found)
    manifest = None if root is None else manifest_of(root, environ, found)
    if manifest is None:
        raise ConfigError(found.problems)
    return manifest


def manifest_of(root: Item, environ: Mapping[str, str], found: Findings) -> Manifest | None:
    """The manifest in a file's items; None where `found` has problems, also those from before."""
    block = Block(root.value, root, found) if isinstance(root.value, Mapping) else None
    if block is None:
        return None
    # A placeholder stands only where there is a problem; then no manifest is made.
    name = block.read("name", text(200), required=True) or ""
    url = block.read("inference_endpoint", endpoint_source.endpoint(environ), required=True) or ""
    rate = block.read("requests_per_second", number(above=0, most=10_000), required=True) or 0.0
    plain = block.given(_PLAIN_FIELDS)
    secret = block.read("secrets", endpoint_source.secret(environ))
    headers = block.read("headers", endpoint_source.headers(environ)) or ()
    ontology = block.read("ontology", read_ontology)
    schema = block.read("inference_params_json_schema", _params_schema) or {}
    block.close()
    manifest = Manifest(
        name,
        slug(name),
        found.file,
        url,
        rate,
        secret,
        ontology=ontology,
        params_schema=schema,
        headers=headers,
        **plain,
    )
    _check_auth(manifest, block, found)
    _check_kinds(manifest, block, found)
    _check_media(manifest, block, found)
    check_frames(block, found)
    return None if found.problems else manifest


def slug(name: str) -> str:
    """`name` in the letters a-z, digits and underscores that asset keys and folders allow, starting with a letter.

    Accents are dropped. A name without a single such letter or digit becomes `model_` and a part of its sha256.
    """
    ascii_only = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    word = re.sub(r"[^a-z0-9]+", "_", ascii_only).strip("_")
    if not word:
        return f"model_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return word if word[0].isalpha() else f"model_{word}"


def _params_schema(item: Item, found: Findings) -> dict[str, object] | None:
    schema = item.plain()
    if not isinstance(schema, dict):
        refuse(item, found, "expected a JSON Schema (a mapping with `properties`)")
        return None
    for fault in schema_faults(schema):
        found.problem(fault.message, params_path(item.path, fault.path), item.nearest(fault.path).line)
    return schema


def _check_auth(manifest: Manifest, block: Block, found: Findings) -> None:
    headers, auth = block.item("headers"), block.item("auth")
    if auth is not None and manifest.secret is None and block.item("secrets") is None:
        found.warn("has no effect without `secrets`", auth.path, auth.line)
    if headers is None or manifest.secret is None or manifest.auth.scheme == "query":
        return
    for name, _ in manifest.headers:
        if name.lower() == manifest.auth.name.lower():
            refuse(headers.nearest((name,)), found, "`secrets` is sent in this header already")


def _check_kinds(manifest: Manifest, block: Block, found: Findings) -> None:
    """An ontology that goes beyond `allowed_feature_kinds` warns, since the document's own example does."""
    ontology, allowed = block.item("ontology"), block.item("allowed_feature_kinds")
    if ontology is None or allowed is None or manifest.ontology is None:
        return
    beyond = [kind.value for kind in kinds_of(manifest.ontology) if kind not in manifest.allowed_feature_kinds]
    if beyond and manifest.allowed_feature_kinds:
        message = f"the ontology also has {one_of(beyond)}; what the ontology has is what counts"
        found.warn(message, allowed.path, allowed.line)


def _check_media(manifest: Manifest, block: Block, found: Findings) -> None:
    item = block.item("ontology")
    if item is None or manifest.ontology is None:
        return
    media, allowed = manifest.ontology.media_type, manifest.allowed_asset_types
    if media and allowed and media not in allowed:
        refuse(item.nearest(("media_type",)), found, f"{media} is not among allowed_asset_types ({one_of(allowed)})")
    names = {feature.name for feature in manifest.ontology.features()}
    if "video" in (media, *allowed) and RESERVED_IN_VIDEO in names:
        refuse(item, found, f"a feature of a video model may not be called {RESERVED_IN_VIDEO!r}: replies use that key")
