"""Labels of a platform export -> annotation lines, the form of ground truth; kept beside the dataset's data rows.

A line is what the platform's import takes, so that a dataset's own `ground_truth` file and the labels of its source
read the same. Of several labels of a data row, the one changed last counts; what has no line is counted, not guessed.
Source: Labelbox docs, Export v2 and the import pages of each media type; entity ends are inclusive in both.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from foundry_pipeline.store import Store

Line = dict[str, Any]

LABELS_FILE = "labels.ndjson"
MAX_NESTING = 8
"""Questions under answers under questions: the platform's editor has fewer."""
MAX_FRAME_DIGITS = 9


def labels_folder(dataset: str) -> str:
    """Where a dataset's labels are, relative to the warehouse's root."""
    return f"ground_truth/dataset={dataset}"


def stored_labels(store: Store, dataset: str) -> Iterator[Line]:
    """The annotation lines that the last load of a dataset found in its source; none where it had no labels."""
    return map(orjson.loads, store.read_lines(f"{labels_folder(dataset)}/{LABELS_FILE}"))


def lines_of_export(raw: Mapping[str, Any]) -> tuple[list[Line], Counter[str]]:
    """The annotation lines of one line of an export v2, and what has none: kind -> how often.

    Total: nothing that a file holds makes it raise.
    """
    lost: Counter[str] = Counter()
    labels = list(_labels(raw))
    if not labels:
        return [], lost
    newest = max(labels, key=_changed_at)
    if len(labels) > 1:
        lost["older label"] = len(labels) - 1
    return list(_lines(_data_row(raw), newest["annotations"], lost)), lost


def has_label(raw: Mapping[str, Any]) -> bool:
    """Whether a person has looked at the data row of a line of an export, and marked something or nothing."""
    return next(_labels(raw), None) is not None


def _labels(raw: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The labels that were not skipped, of all projects."""
    for project in _values(raw.get("projects")):
        for label in _items(project.get("labels")):
            skipped = _object(label.get("performance_details")).get("skipped")
            if skipped is not True and isinstance(label.get("annotations"), Mapping):
                yield label


def _changed_at(label: Mapping[str, Any]) -> str:
    details = _object(label.get("label_details"))
    return str(details.get("content_last_updated_at") or details.get("updated_at") or details.get("created_at") or "")


def _data_row(raw: Mapping[str, Any]) -> Line:
    row = _object(raw.get("data_row"))
    key = row.get("global_key")
    return {"id": row.get("id")} if key is None else {"globalKey": key}


def _lines(row: Line, annotations: Mapping[str, Any], lost: Counter[str]) -> Iterator[Line]:
    for found in _items(annotations.get("objects")):
        yield from _object_line(row, found, lost)
    for found in _items(annotations.get("classifications")):
        yield from _classification_line(row, found, lost)
    yield from _frame_lines(row, annotations, lost)
    if relationships := len(list(_items(annotations.get("relationships")))):
        lost["relationship"] += relationships


def _object_line(row: Line, found: Mapping[str, Any], lost: Counter[str]) -> Iterator[Line]:
    geometry = _geometry(found)
    if geometry is None or not isinstance(found.get("name"), str):
        lost[str(found.get("annotation_kind") or "object of an unknown kind")] += 1
        return
    yield _head(row, found) | geometry | _nested(found, 1)


def _classification_line(row: Line, found: Mapping[str, Any], lost: Counter[str]) -> Iterator[Line]:
    answer = _answer(found)
    if answer is None:
        lost["classification without an answer"] += 1
        return
    message = {"messageId": found["message_id"]} if isinstance(found.get("message_id"), str) else {}
    yield _head(row, found) | answer | message


def _head(row: Line, found: Mapping[str, Any]) -> Line:
    return {"uuid": found.get("feature_id"), "dataRow": row, "name": found["name"]}


def _geometry(found: Mapping[str, Any]) -> Line | None:
    """The keys of a line that hold an object's shape; None where it has none that a line can hold."""
    for ours, theirs in (("bbox", "bounding_box"), ("polygon", "polygon"), ("line", "line"), ("point", "point")):
        if isinstance(found.get(theirs), Mapping | list):
            return {ours: found[theirs]}
    if isinstance(place := found.get("location"), Mapping):
        return _location(place)
    if isinstance(place := found.get("conversational_location"), Mapping):
        location = _location(_object(place.get("location")))
        return None if location is None else location | {"messageId": place.get("message_id")}
    return _mask(found)


def _location(place: Mapping[str, Any]) -> Line | None:
    start, end = place.get("start"), place.get("end")
    return {"location": {"start": start, "end": end}} if type(start) is int and type(end) is int else None


def _mask(found: Mapping[str, Any]) -> Line | None:
    """By its URL, which only the platform's key opens."""
    mask, composite = _object(found.get("mask")), _object(found.get("composite_mask"))
    if isinstance(mask.get("url"), str):
        return {"mask": {"instanceURI": mask["url"]}}
    if isinstance(composite.get("url"), str):
        return {"mask": {"instanceURI": composite["url"], "colorRGB": composite.get("color_rgb")}}
    return None


def _answer(found: Mapping[str, Any], depth: int = 0) -> Line | None:
    """Name and answer of a classification, nested ones included; None where there is no answer."""
    if not isinstance(found.get("name"), str) or depth > MAX_NESTING:
        return None
    for prefix in ("", "conversational_"):
        if isinstance(radio := found.get(f"{prefix}radio_answer"), Mapping):
            return {"name": found["name"], "answer": _option(radio, depth)}
        if isinstance(chosen := found.get(f"{prefix}checklist_answers"), list):
            return {"name": found["name"], "answer": [_option(each, depth) for each in _items(chosen)]}
        if isinstance(text := found.get(f"{prefix}text_answer"), Mapping) and isinstance(text.get("content"), str):
            return {"name": found["name"], "answer": text["content"]}
    return None


def _option(chosen: Mapping[str, Any], depth: int) -> Line:
    """An option goes by its value, as in imports."""
    return {"name": chosen.get("value") or chosen.get("name")} | _nested(chosen, depth + 1)


def _nested(found: Mapping[str, Any], depth: int) -> Line:
    answers = [answer for each in _items(found.get("classifications")) if (answer := _answer(each, depth)) is not None]
    return {"classifications": answers} if answers else {}


def _frame_lines(row: Line, annotations: Mapping[str, Any], lost: Counter[str]) -> Iterator[Line]:
    """A video's objects, one line each with its key frames, and its answers, one line each with its frames."""
    objects: defaultdict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    answers: defaultdict[str, list[int]] = defaultdict(list)
    for key, frame in _object(annotations.get("frames")).items():
        if not (key.isdecimal() and len(key) <= MAX_FRAME_DIGITS and isinstance(frame, Mapping)):
            lost["frame without a number"] += 1
            continue
        for feature_id, found in _object(frame.get("objects")).items():
            objects[str(feature_id)].append((int(key), _object(found)))
        for found in _items(frame.get("classifications")):
            if (answer := _answer(found)) is None:
                lost["classification without an answer"] += 1
            else:
                answers[json.dumps(answer, sort_keys=True)].append(int(key))
    for feature_id, frames in objects.items():
        yield from _object_in_frames(row, feature_id, sorted(frames, key=lambda each: each[0]), annotations, lost)
    for answer_text, numbers in answers.items():
        yield {"dataRow": row} | json.loads(answer_text) | {"frames": list(_ranges(sorted(numbers)))}


def _object_in_frames(
    row: Line,
    feature_id: str,
    frames: list[tuple[int, Mapping[str, Any]]],
    annotations: Mapping[str, Any],
    lost: Counter[str],
) -> Iterator[Line]:
    segments: defaultdict[int, list[Line]] = defaultdict(list)
    ranges = [each for each in _list(_object(annotations.get("segments")).get(feature_id)) if _is_range(each)]
    name = next((found["name"] for _, found in frames if isinstance(found.get("name"), str)), None)
    for number, found in frames:
        geometry = _geometry(found)
        if name is None or geometry is None or not geometry.keys() & {"bbox", "line", "point"}:
            lost[str(found.get("annotation_kind") or "object of an unknown kind")] += 1
            continue
        place = next((at for at, (first, last) in enumerate(ranges) if first <= number <= last), -1)
        segments[place].append({"frame": number} | geometry)
    if segments:
        found_in = [{"keyframes": key_frames} for key_frames in segments.values()]
        yield {"uuid": feature_id, "dataRow": row, "name": name, "segments": found_in}


def _is_range(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)


def _ranges(numbers: Iterable[int]) -> Iterator[Line]:
    """Runs of numbers that follow each other, both ends included."""
    first = last = None
    for number in numbers:
        if last is not None and number > last + 1:
            yield {"start": first, "end": last}
            first = None
        first, last = (number if first is None else first), number
    if last is not None:
        yield {"start": first, "end": last}


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _items(value: object) -> Iterator[Mapping[str, Any]]:
    """The objects of a list."""
    return (item for item in _list(value) if isinstance(item, Mapping))


def _values(value: object) -> Iterator[Mapping[str, Any]]:
    """The objects in an object."""
    return (item for item in _object(value).values() if isinstance(item, Mapping))
