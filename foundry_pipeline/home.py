"""The home folder: models, datasets, runs and `foundry.yaml`, read and cross-checked as a whole; and where things lie.

What one file of each kind may say is in `manifest.py`, `dataset_source.py`, `run_source.py` and `settings.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from foundry_pipeline.config.dataset_source import Dataset, dataset_of
from foundry_pipeline.config.project_source import project_ontology
from foundry_pipeline.config.run_source import MinScore, References, Run, run_of
from foundry_pipeline.config.secrets import forbidden_host
from foundry_pipeline.config.settings import Settings, read_settings
from foundry_pipeline.config.yaml_source import Findings, Item, read_yaml
from foundry_pipeline.errors import ConfigError, Problem
from foundry_pipeline.manifest import Manifest, manifest_of, slug
from foundry_pipeline.rows.local_files import LocalFiles

__all__ = [
    "Dataset",
    "Home",
    "MinScore",
    "Run",
    "Settings",
    "home_root_of",
    "ledger_of",
    "load_home",
    "warehouse_of",
]

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")


@dataclass(frozen=True, slots=True)
class Home:
    """What a home folder says. Sound files are in the mappings; whatever is wrong is in `problems` (empty when fine),
    and a run whose model or dataset is unsound is left out. `warnings` do not stop anything (a literal secret).

    `root` is absolute. Models are listed by `Manifest.key`, datasets and runs by name, in the order of their names.
    """

    root: Path
    models: Mapping[str, Manifest]
    datasets: Mapping[str, Dataset]
    runs: Mapping[str, Run]
    settings: Settings = field(default_factory=Settings)
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def home_root_of(argument: str | Path | None, environ: Mapping[str, str], default: str | Path) -> Path:
    """The home folder: what the command line says, else FOUNDRY_HOME, else the default; absolute."""
    return Path(argument or environ.get("FOUNDRY_HOME") or default).absolute()


def warehouse_of(home_root: Path, environ: Mapping[str, str]) -> str:
    """Where tables go: FOUNDRY_WAREHOUSE, a path or URL, else `warehouse` in the home folder."""
    return environ.get("FOUNDRY_WAREHOUSE") or str(home_root / "warehouse")


def ledger_of(home_root: Path, environ: Mapping[str, str]) -> str:
    """Where calls are kept: FOUNDRY_LEDGER, a folder or database URL, else `ledger` in the home folder."""
    return environ.get("FOUNDRY_LEDGER") or str(home_root / "ledger")


def load_home(root: Path, environ: Mapping[str, str]) -> Home:
    """Everything the home folder says. A bad file is never an exception: it is in `problems`, the others are read.

    Raises ConfigError where the folder itself is missing.
    """
    if not root.is_dir():
        raise ConfigError(
            [Problem(str(root), "there is no such folder; a home folder has models/, datasets/ and runs/")]
        )
    return _HomeReader(root.absolute(), environ).read()


class _HomeReader:
    """Reads the files in the order they depend on each other, keeping every file's findings."""

    def __init__(self, root: Path, environ: Mapping[str, str]) -> None:
        self._root = root
        self._environ = environ
        self._findings: list[Findings] = []

    def read(self) -> Home:
        settings = self._settings()
        models, model_words = self._models(settings or Settings())
        datasets = self._named("datasets", lambda item, path, found: self._dataset(item, path, settings, found))
        files = LocalFiles(self._root, (settings or Settings()).allow_folders)

        def run(item: Item, path: Path, found: Findings) -> Run | None:
            project = project_ontology(path.parent, files)
            return run_of(item, path.stem, model_words, datasets, project, found)

        runs = self._named("runs", run)
        return Home(
            self._root,
            models,
            _sound(datasets),
            _sound(runs) if settings is not None else {},
            settings or Settings(),
            tuple(problem for found in self._findings for problem in found.problems),
            tuple(warning for found in self._findings for warning in found.warnings),
        )

    def _settings(self) -> Settings | None:
        """None where the file is unsound. Then nobody knows what it forbids, so no run is offered."""
        path = self._root / "foundry.yaml"
        if path.with_suffix(".yml").exists():
            self._found(path.with_suffix(".yml")).problem("is not read: rename it to foundry.yaml")
            return None
        if not path.exists():
            return Settings()
        found = self._found(path)
        settings = read_settings(path, found)
        if settings is None:
            found.problem("no run is offered until this file is right: what it forbids is not known")
        return settings

    def _models(self, settings: Settings) -> tuple[dict[str, Manifest], References[Manifest]]:
        """(sound models by key, the words a run may use: a model's name, then its key, then its file's stem)."""
        read: list[tuple[str, str, Manifest | None]] = []
        files: dict[str, str] = {}
        for path in self._files("models"):
            found = self._found(path)
            item = read_yaml(path, found)
            name = _name_in(item) or path.stem
            if (first := files.setdefault(slug(name), found.file)) != found.file:
                found.problem(f"its name gives the same key as that of {first}: {slug(name)}", "$.name")
            manifest = None if item is None else manifest_of(item, self._environ, found)
            if item is not None and manifest is not None:
                manifest = _checked_model(manifest, item, path, settings, found)
            read.append((name, path.stem, manifest))
        by_stem = {stem: manifest for _, stem, manifest in read}
        by_key = {slug(name): manifest for name, _, manifest in reversed(read)}  # of two with one key, the first
        by_name = {name: manifest for name, _, manifest in reversed(read)}
        return _sound(by_key), {**by_stem, **by_key, **by_name}

    def _dataset(self, item: Item, path: Path, settings: Settings | None, found: Findings) -> Dataset | None:
        return dataset_of(item, path.stem, path.parent, self._root, settings or Settings(), found)

    def _named(self, folder: str, read: Callable[[Item, Path, Findings], T | None]) -> dict[str, T | None]:
        """Name -> what a folder's file says, None where it is unsound. The name is the file's stem."""
        things: dict[str, T | None] = {}
        taken: dict[str, str] = {}
        for path in self._files(folder):
            found = self._found(path)
            if not _NAME.fullmatch(path.stem):
                found.problem(_rename(path.stem))
            if (first := taken.setdefault(path.stem.lower(), found.file)) != found.file:
                found.problem(f"differs from {first} in capitals only, which some file systems do not tell apart")
            item = read_yaml(path, found)
            thing = None if item is None else read(item, path, found)
            things[path.stem] = None if found.problems else thing
        return things

    def _files(self, folder: str) -> Iterator[Path]:
        for path in sorted((self._root / folder).glob("*.y*ml")):
            if path.name.startswith(".") or path.is_dir():
                continue
            if path.suffix == ".yaml" and (path.is_file() or not path.exists()):  # a link to nothing is reported
                yield path
            elif path.suffix == ".yml":
                self._found(path).warn(f"is not read: rename it to {path.stem}.yaml")

    def _found(self, path: Path) -> Findings:
        shown_as = path.relative_to(self._root).as_posix()
        self._findings.append(Findings(shown_as if shown_as.isprintable() else repr(shown_as)))
        return self._findings[-1]


def _sound(things: Mapping[str, T | None]) -> dict[str, T]:
    return {name: thing for name, thing in things.items() if thing is not None}


def _name_in(item: Item | None) -> str | None:
    """The name a manifest gives itself, also where the rest of it is unsound."""
    name = item.value.get("name") if item is not None and isinstance(item.value, Mapping) else None
    return name.value if name is not None and isinstance(name.value, str) and name.value else None


def _checked_model(manifest: Manifest, item: Item, path: Path, settings: Settings, found: Findings) -> Manifest | None:
    if refusal := forbidden_host(manifest, settings):
        found.problem(refusal, "$.inference_endpoint", item.nearest(("inference_endpoint",)).line)
        return None
    if path.stem != manifest.name and slug(path.stem) != manifest.key:
        message = f"the file is not called like the model: expected {manifest.key}.yaml"
        found.warn(message, "$.name", item.nearest(("name",)).line)
    return manifest


def _rename(stem: str) -> str:
    better = re.sub(r"[^A-Za-z0-9_]+", "_", stem).strip("_")
    advice = f": rename it to {better}.yaml" if _NAME.fullmatch(better) else ""
    return (
        "the file's name becomes a folder and an asset key: it may have letters, digits and underscores,"
        f" at most 100, and starts with a letter{advice}"
    )
