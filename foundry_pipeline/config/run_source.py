"""`runs/<run>.yaml` -> Run: one model on one dataset with its settings, checked against both."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from foundry_pipeline.config.catalogue_source import Freshness, freshness, owner, tags
from foundry_pipeline.config.checks_source import Checks, checks
from foundry_pipeline.config.dataset_source import Dataset
from foundry_pipeline.config.fields import (
    Block,
    Reader,
    choice,
    flag,
    list_of,
    near,
    number,
    one_of,
    refuse,
    seen,
    text,
)
from foundry_pipeline.config.money import Money, money
from foundry_pipeline.config.ontology_source import walk_features
from foundry_pipeline.config.params import completed, params_path
from foundry_pipeline.config.schedule import cron_fault
from foundry_pipeline.config.split import Split, read_split
from foundry_pipeline.config.video_source import FRAME_FIELDS, check_frames
from foundry_pipeline.config.yaml_source import Findings, Item
from foundry_pipeline.errors import shown
from foundry_pipeline.manifest import Manifest
from foundry_pipeline.ontology import FeatureKind
from foundry_pipeline.project_ontology import ProjectOntology, unfit_features
from foundry_pipeline.rows.frames import DEFAULT_FRAMES_PER_SECOND, Sampling
from foundry_pipeline.tables import TABLE_OF_KIND

T = TypeVar("T")

MOST_FAILED = 0.05
"""Share of failed rows that a slice may have where its run says nothing."""

References = Mapping[str, T | None]
"""Every word that may stand for a thing -> the thing; None where its own file has problems."""


@dataclass(frozen=True, slots=True)
class MinScore:
    """Thresholds for exports and views, by mapped feature name; `default` for all others."""

    default: float = 0.0
    by_feature: Mapping[str, float] = field(default_factory=dict)

    def of(self, feature: str) -> float:
        """The least score a prediction of `feature` needs. A prediction without a score passes."""
        return self.by_feature.get(feature, self.default)


@dataclass(frozen=True, slots=True)
class Run:
    """One model run. `inference_params` is complete: the schema's defaults are filled in.

    `ontology_mapping` maps the model's class to your feature; None leaves it out of exports; a class that is
    not listed keeps its name. `max_failed_share` is the share of failed rows a slice may have and still be committed.
    """

    name: str
    file: str
    model: Manifest
    dataset: Dataset
    inference_params: Mapping[str, object] = field(default_factory=dict)
    ontology_mapping: Mapping[str, str | None] = field(default_factory=dict)
    min_score: MinScore = field(default_factory=MinScore)
    exports: tuple[str, ...] = ()
    project: ProjectOntology | None = None
    """The ontology of the annotation project that exports are for: what they write must have its place there."""
    keep_empty: bool = True
    """Data rows in which nothing was found are in the exports that can say so."""
    split: Split | None = None
    """Which data rows are for training, validation and testing; None where exports do not part them."""
    schedule: str | None = None
    max_failed_share: float = MOST_FAILED
    budget: Money | None = None
    """What all calls of this run may cost together, in the currency of the model's `cost_per_call`."""
    follow_dataset: bool = False
    """Launch this run's new slices when its dataset grows, where the growth sensor is on."""
    frames_per_second: float | None = None
    frames: tuple[int, ...] = ()
    """Of a video: how many frames, or which; the manifest's word holds where both are left out."""
    generate: str | None = None
    """Continue conversations instead of labelling them: `last` answers the last message of a user, `every` each of
    them in turn, with the model's own answers as history."""

    @property
    def sampling(self) -> Sampling:
        """Which frames of a video are sent."""
        said = self if self.frames or self.frames_per_second else self.model
        return Sampling(said.frames_per_second or DEFAULT_FRAMES_PER_SECOND, said.frames)

    @property
    def uses_image_attachments(self) -> bool:
        """Whether a data row's picture attachments are sent along: the document's own parameter says so."""
        return self.inference_params.get("use_image_attachments") is True

    checks: Checks = field(default_factory=Checks)
    owners: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    freshness: Freshness | None = None
    """How old answers, tables and exports may be; None: as old as they like."""

    def feature_of(self, model_class: str) -> str | None:
        """Your feature for the model's class; None where the run leaves the class out of exports."""
        return self.ontology_mapping.get(model_class, model_class)


def run_of(
    root: Item,
    name: str,
    models: References[Manifest],
    datasets: References[Dataset],
    read_project: Reader[ProjectOntology],
    found: Findings,
) -> Run | None:
    """The run in a file's items; None where `found` has problems, or the model's or dataset's file has.

    `read_project` reads the file that `ontology` names.
    """
    block = Block.of(root, found)
    if block is None:
        return None
    model = block.read("model", _reference("model", models), required=True)
    dataset = block.read("dataset", _reference("dataset", datasets), required=True)
    params = block.read("inference_params", _params) or {}
    readers: Mapping[str, Reader[Any]] = {
        "ontology_mapping": _ontology_mapping,
        "min_score": _min_score,
        "exports": list_of(choice(_export_formats()), empty=True),
        "keep_empty": flag,
        "split": read_split,
        "schedule": _schedule,
        "max_failed_share": number(least=0, most=1),
        "budget": money(most=1_000_000_000),
        "follow_dataset": flag,
        **FRAME_FIELDS,
        "generate": choice(("last", "every")),
        "owners": list_of(owner, empty=True),
        "tags": tags,
        "freshness": freshness,
    }
    plain = block.given(readers)
    plain["checks"] = _checks(block, plain.get("max_failed_share", MOST_FAILED))
    project = block.read("ontology", read_project)
    block.close()
    sound = (None if model is None else models[model], None if dataset is None else datasets[dataset])
    _refuse_unsound(root, {"model": (model, sound[0]), "dataset": (dataset, sound[1])}, found)
    if sound[0] is not None:
        params = _complete(sound[0], params, block.item("inference_params"), root.line, found)
        _check_features(sound[0], plain, block, found)
        _check_budget(sound[0], plain.get("budget"), block, found)
    if sound[0] is None or sound[1] is None:
        return None
    _check_media(sound[0], sound[1], block, found)
    _check_exports(sound[1], plain.get("exports", ()), block, found)
    check_frames(block, found)
    _check_media_keys(sound[1], block, found)
    _check_generate(sound[0], block, found)
    _check_project(sound[0], sound[1], project, plain.get("ontology_mapping", {}), block, found)
    return None if found.problems else Run(name, found.file, sound[0], sound[1], params, project=project, **plain)


def _checks(block: Block, max_failed_share: float) -> Checks:
    """`max_failed_share` is the limit of failed rows, unless the check has one of its own."""
    usual = Checks(failed_share=replace(Checks().failed_share, limit=max_failed_share))
    return block.read("checks", checks(usual)) or usual


def _export_formats() -> Collection[str]:
    # Imported late: the exports are written from runs, and a run names its exports.
    from foundry_pipeline.exports import FORMATS

    return tuple(FORMATS)


def _reference(kind: str, known: References[T]) -> Reader[str]:
    """A word that stands for a model or dataset of this home, sound or not."""

    def read(item: Item, found: Findings) -> str | None:
        word = text(200)(item, found)
        if word is not None and word not in known:
            advice = near(word, known) or (f"; there is {one_of(known)}" if known else f"; there are no {kind}s")
            refuse(item, found, f"there is no {kind} {shown(word)}{advice}")
            return None
        return word

    return read


def _refuse_unsound(root: Item, referred: Mapping[str, tuple[str | None, object]], found: Findings) -> None:
    unsound = [f"{kind} {word!r}" for kind, (word, thing) in referred.items() if word is not None and thing is None]
    if unsound:
        found.problem(f"the run is left out because of the problems of {' and '.join(unsound)}", root.path, root.line)


def _params(item: Item, found: Findings) -> dict[str, object] | None:
    value = item.plain()
    if isinstance(value, dict):
        return value
    refuse(item, found, f"expected a mapping (`name: value`); got {seen(item)}")
    return None


def _complete(
    model: Manifest, params: Mapping[str, object], item: Item | None, root_line: int, found: Findings
) -> dict[str, object]:
    filled, faults = completed(model.params_schema, params)
    for fault in faults:
        path = params_path("$.inference_params", fault.path)
        found.problem(fault.message, path, root_line if item is None else item.nearest(fault.path).line)
    return filled


def _ontology_mapping(item: Item, found: Findings) -> dict[str, str | None] | None:
    if not isinstance(item.value, Mapping):
        refuse(item, found, f"expected a mapping (`ModelClass: your_feature`); got {seen(item)}")
        return None
    mapping: dict[str, str | None] = {}
    for model_class, entry in item.value.items():
        mapping[model_class] = None if entry.value is None else text(200)(entry, found)
    return mapping


_share = number(least=0, most=1)


def _min_score(item: Item, found: Findings) -> MinScore | None:
    """One number for all features, or a mapping of features, with `default` for the others."""
    if not isinstance(item.value, Mapping):
        score = _share(item, found)
        return None if score is None else MinScore(score)
    scores = {name: _share(entry, found) or 0.0 for name, entry in item.value.items()}
    return MinScore(scores.pop("default", 0.0), scores)


def _schedule(item: Item, found: Findings) -> str | None:
    word = text(200)(item, found)
    fault = None if word is None else cron_fault(word)
    if fault is None:
        return word
    refuse(item, found, fault)
    return None


def _check_media(model: Manifest, dataset: Dataset, block: Block, found: Findings) -> None:
    item, media = block.item("dataset"), model.media_types()
    if item is not None and media and dataset.media_type not in media:
        message = f"its data rows are {dataset.media_type}; the model {model.name!r} takes {one_of(media)}"
        refuse(item, found, message)


def _check_exports(dataset: Dataset, names: Iterable[str], block: Block, found: Findings) -> None:
    """A format that has no place for the data rows would be written empty."""
    from foundry_pipeline.exports import FORMATS  # late, as above

    for at, name in enumerate(names):
        item = block.item("exports")
        if item is not None and dataset.media_type not in FORMATS[name].media_types:
            entry = item.nearest((at,))
            message = f"{name} has no place for {dataset.media_type} data rows; it takes "
            found.warn(message + one_of(sorted(FORMATS[name].media_types)), entry.path, entry.line)


MEDIA_OF_KEY = {"frames": "video", "frames_per_second": "video", "generate": "conversational"}
"""Keys that mean something for data rows of one media type only."""


def _check_media_keys(dataset: Dataset, block: Block, found: Findings) -> None:
    for key, media in MEDIA_OF_KEY.items():
        item = block.item(key)
        if item is not None and dataset.media_type != media:
            refuse(
                item, found, f"has no effect: the data rows of {dataset.name!r} are {dataset.media_type}, not {media}"
            )


def _check_generate(model: Manifest, block: Block, found: Findings) -> None:
    item = block.item("generate")
    if item is not None and FeatureKind.TEXT not in model.feature_kinds():
        refuse(item, found, f"the model {model.name!r} has no text feature that an answer could be in")


def _check_features(model: Manifest, plain: Mapping[str, Any], block: Block, found: Findings) -> None:
    """A class or feature that does not exist would have no effect, and nobody would notice."""
    if model.ontology is None:
        return
    classes = {feature.name: None for feature in walk_features(model.ontology.features())}
    mapping = plain.get("ontology_mapping", {})
    features = {mapping.get(name, name): None for name in classes}
    features.pop(None, None)
    _refuse_strangers(block.item("ontology_mapping"), mapping, classes, "the model has no class", found)
    thresholds = plain.get("min_score", MinScore()).by_feature
    _refuse_strangers(block.item("min_score"), thresholds, features, "after the mapping there is no feature", found)


def _check_project(
    model: Manifest,
    dataset: Dataset,
    project: ProjectOntology | None,
    mapping: Mapping[str, str | None],
    block: Block,
    found: Findings,
) -> None:
    """Names that no import could have are found before a call is paid for; those of open answers when they come."""
    from foundry_pipeline.exports.labelbox import IMPORTABLE  # late, as above

    item = block.item("ontology")
    if item is None or project is None:
        return
    if model.ontology is None:
        strangers = sorted({name for name in mapping.values() if name is not None} - project.names())
        faults = [f"there is no tool or question {shown(name)}{near(name, project.names())}" for name in strangers]
    else:
        importable = IMPORTABLE[dataset.media_type]
        features = [one for one in model.ontology.features() if TABLE_OF_KIND[one.kind].name in importable]
        faults = list(dict.fromkeys(unfit_features(project, features, mapping)))
    for fault in faults:
        refuse(item, found, f"{project.file}: {fault}")


def _check_budget(model: Manifest, budget: Money | None, block: Block, found: Findings) -> None:
    """A budget that cannot be kept would be trusted all the same."""
    item, price = block.item("budget"), model.cost_per_call
    if item is None or budget is None:
        return
    if price is None:
        refuse(item, found, f"needs `cost_per_call` in {model.file}: without it nobody knows what is spent")
    elif budget.currency and price.currency and budget.currency != price.currency:
        message = f"expected the currency of `cost_per_call` in {model.file}, {price.currency}; got {budget.currency}"
        refuse(item, found, message)


def _refuse_strangers(
    item: Item | None, names: Iterable[str], known: Iterable[str], message: str, found: Findings
) -> None:
    for name in names if item is not None else ():
        if item is not None and name not in known:
            entry = item.nearest((name,))
            refuse(entry, found, f"{message} {shown(name)}{near(name, known) or '; there is ' + one_of(known)}")
