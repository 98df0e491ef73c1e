"""Code versions: what a person may change in files so that an asset is out of date. Dagster shows such assets as stale.

The speed of calls, a description or a time-out changes no answer, and is in none of them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

from foundry_pipeline.decode import VERSION
from foundry_pipeline.exports import FORMATS
from foundry_pipeline.home import Run


def answers_version(run: Run) -> str:
    """Changes with what is sent to the model: endpoint, protocol, parameters, ontology."""
    model = run.model
    return _digest(
        {
            "endpoint": model.inference_endpoint,
            "protocol": model.protocol,
            "version": model.version,
            "max_tokens": model.max_tokens,
            "params": run.inference_params,
            "frames": [run.sampling.frames_per_second, list(run.sampling.frames), model.frames_per_call],
            "roles": run.dataset.roles,
            "generate": run.generate,
            "message_ids": model.message_ids,
            **_what_is_known(run),
        }
    )


def decoding_version(run: Run) -> str:
    """Changes with what replies are checked against, and with the decoder."""
    return _digest({"decoder": VERSION, **_what_is_known(run)})


def exports_version(run: Run) -> str:
    """Changes with what is let out into files, under which names, and in which shape."""
    return _digest(
        {
            "exports": {name: FORMATS[name].version for name in run.exports},
            "keep_empty": run.keep_empty,
            "split": dict(run.split.shares) if run.split else None,
            "project": asdict(run.project) if run.project else None,
            "ontology_mapping": run.ontology_mapping,
            "min_score": [run.min_score.default, dict(run.min_score.by_feature)],
        }
    )


def evaluation_version(run: Run) -> str:
    """Changes with what is compared with what."""
    return _digest(
        {
            "ground_truth": run.dataset.ground_truth,
            "ontology_mapping": run.ontology_mapping,
            "min_score": [run.min_score.default, dict(run.min_score.by_feature)],
        }
    )


def _what_is_known(run: Run) -> Mapping[str, object]:
    return {
        "ontology": run.model.ontology.as_json() if run.model.ontology else None,
        "kinds": run.model.allowed_feature_kinds,
        "dataset": run.dataset.name,
        "seen": [run.model.exif, run.model.html],
    }


def _digest(facts: Mapping[str, object]) -> str:
    canonical = json.dumps(facts, sort_keys=True, ensure_ascii=False, default=dict)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]
