"""The committed ONNX weights, opened for the CPU."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def open_weights(file_name: str) -> ort.InferenceSession:
    """A session on one file of `demo/weights`; its `run` may be called from several threads.

    One thread a call, without spinning: the endpoint answers calls side by side, and the pipeline needs cores too.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(WEIGHTS / file_name, options, providers=["CPUExecutionProvider"])
