"""[<run>, preview]: a few rows called and drawn before all are paid for, and what the whole run would take."""

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from assets.descriptions import markdown_table, preview_description
from assets.keys import data_rows_key, pool_of, preview_key
from assets.launchpad import params_field
from assets.versions import answers_version
from foundry_pipeline.config.params import completed
from foundry_pipeline.home import Run
from foundry_pipeline.preview.forecast import Forecast, forecast
from foundry_pipeline.preview.gallery import Shown, forecast_lines, gallery_page, page_name
from foundry_pipeline.preview.preview import Preview, dataset_rows, named_rows, preview_run, with_params
from foundry_pipeline.preview.sample import Sampled, stratified, stratum_of
from foundry_pipeline.quality.audit import audit_answers
from foundry_pipeline.store import Store
from foundry_pipeline.tables import RESPONSES
from resources import Contents, ModelCalls

MOST_ROWS = 500
PICTURES_SHOWN = 3
PICTURE_SIDE_PX = 240
CONCURRENCY_WITHOUT_LIMIT = 64


@dataclass(frozen=True, slots=True)
class _Request:
    """What the launchpad asks for."""

    count: int
    seed: int
    rows: tuple[str, ...]
    stratify_by: str | None
    params: Mapping[str, object]


def preview_asset(run: Run) -> dg.AssetsDefinition:
    """The asset of one run. Unpartitioned: the sample is of the whole dataset."""

    @dg.asset(
        key=preview_key(run.name),
        deps=[data_rows_key(run.dataset.name)],
        group_name=run.name,
        kinds={"http", "html"},
        description=preview_description(run),
        code_version=answers_version(run),
        pool=pool_of(run),
        config_schema=_config(run),
    )
    def preview(
        context: dg.AssetExecutionContext,
        warehouse: dg.ResourceParam[Store],
        contents: dg.ResourceParam[Contents],
        model_calls: dg.ResourceParam[ModelCalls],
    ) -> dg.MaterializeResult[None]:
        wanted = _request(context.op_execution_context.op_config)
        tried = with_params(run, wanted.params)
        sample = _sample(tried, warehouse, wanted)
        with model_calls.open(tried) as invoker, contents.open(run.dataset) as reader:
            found = preview_run(tried, warehouse, sample, invoker.ask, reader)
        foreseen = _forecast(tried, warehouse, sample, found, is_new=tried.inference_params != run.inference_params)
        page = gallery_page(run.name, found.rows, _about(wanted, tried, sample), foreseen, _paste(run, tried))
        written = warehouse.write_file(page_name(run.name), page.encode())
        return dg.MaterializeResult(
            metadata={
                **_metadata(found, foreseen),
                "page": dg.MetadataValue.path(f"{warehouse.root}/{page_name(run.name)}"),
                "inference_params": dg.MetadataValue.json(dict(tried.inference_params)),
                **({"for_the_run_file": paste} if (paste := _paste(run, tried)) else {}),
            },
            data_version=dg.DataVersion(written.sha256),
        )

    return preview


def _config(run: Run) -> dict[str, dg.Field]:
    return {
        "count": dg.Field(int, default_value=12, description=f"How many data rows, at most {MOST_ROWS}."),
        "seed": dg.Field(int, default_value=0, description="Another seed takes other rows."),
        "rows": dg.Field([str], default_value=[], description="Global keys to take, in place of a sample."),
        "stratify_by": dg.Field(
            dg.Noneable(str),
            default_value=None,
            description="A metadata column: some rows of each of its values. Else of each content type and size.",
        ),
        "inference_params": params_field(run),
    }


def _request(config: Mapping[str, Any]) -> _Request:
    count = config["count"]
    if not 1 <= count <= MOST_ROWS:
        raise dg.Failure(f"count: expected 1 to {MOST_ROWS}; got {count}", allow_retries=False)
    params = config.get("inference_params", {})
    return _Request(count, config["seed"], tuple(config["rows"]), config["stratify_by"], params)


def _sample(run: Run, store: Store, wanted: _Request) -> list[Sampled]:
    rows = dataset_rows(run, store)
    if wanted.rows:
        return named_rows(rows, wanted.rows)
    return stratified(rows, wanted.count, wanted.seed, stratum_of(wanted.stratify_by))


def _forecast(run: Run, store: Store, sample: list[Sampled], found: Preview, *, is_new: bool) -> Forecast:
    """What was answered here is paid for. With other parameters than the run's nothing else is."""
    answers = audit_answers(run, store)
    committed = set() if is_new else set(store.slices(RESPONSES, run.name))
    here = sum(
        shown.annotated.answered and sampled.slice_key not in committed
        for sampled, shown in zip(sample, found.rows, strict=True)
    )
    return forecast(
        found.seen,
        rows=max(answers.calls, answers.outcomes.total()),
        data_rows=answers.rows,
        rows_answered=here + (0 if is_new else answers.outcomes["ok"]),
        requests_per_second=run.model.requests_per_second,
        max_concurrency=run.model.max_concurrency or CONCURRENCY_WITHOUT_LIMIT,
        cost_per_call=run.model.cost_per_call,
    )


def _about(wanted: _Request, run: Run, sample: list[Sampled]) -> list[str]:
    kinds = sorted({sampled.stratum for sampled in sample})
    how = "named" if wanted.rows else f"of {len(kinds)} kinds ({'; '.join(kinds[:8])}), seed {wanted.seed}"
    return [f"{len(sample)} data rows, {how}", f"parameters: {json.dumps(run.inference_params, ensure_ascii=False)}"]


def _paste(run: Run, tried: Run) -> str | None:
    """The line for the run file, where something else than the run's own parameters was tried."""
    if tried.inference_params == run.inference_params:
        return None
    defaults, _ = completed(run.model.params_schema, {})
    chosen = {name: value for name, value in tried.inference_params.items() if defaults.get(name) != value}
    return f"inference_params: {json.dumps(chosen, ensure_ascii=False)}"


def _metadata(found: Preview, foreseen: Forecast) -> dict[str, Any]:
    rows = [(shown.annotated.row.global_key, shown.annotated.outcome, _said(shown)) for shown in found.rows]
    rejects = [(shown.annotated.row.global_key, *reject) for shown in found.rows for reject in shown.rejects]
    metadata: dict[str, Any] = {
        "dagster/row_count": len(found.rows),
        "failed": found.seen.failed,
        "refused": found.seen.refused,
        "forecast": dg.MetadataValue.md(markdown_table(("the whole run", ""), forecast_lines(foreseen))),
        "calls_to_come": foreseen.calls,
        "seconds_to_come": round(foreseen.seconds, 1),
        "rows": dg.MetadataValue.md(markdown_table(("data row", "outcome", "said"), rows, len(rows))),
        **_pictures(found),
    }
    if rejects:
        table = markdown_table(("data row", "path", "reason", "why"), rejects, len(rejects))
        metadata["rejects"] = dg.MetadataValue.md(table)
    return metadata


def _said(shown: Shown) -> str:
    if shown.error:
        return shown.error
    said = Counter(
        f"{p.feature}: {p.values['answer']}" if "answer" in p.values else p.feature for p in shown.annotated.predictions
    )
    return ", ".join(f"{count} {what}" if count > 1 else what for what, count in said.items()) or "nothing found"


def _pictures(found: Preview) -> dict[str, Any]:
    """The first few that show something, small: the page has all, large."""
    drawn = [shown for shown in found.rows if shown.drawn is not None]
    first = sorted(drawn, key=lambda shown: not shown.annotated.predictions)[:PICTURES_SHOWN]
    return {f"picture_{place}": _small(shown) for place, shown in enumerate(first, 1)}


def _small(shown: Shown) -> dg.MarkdownMetadataValue:
    assert shown.drawn is not None
    small, out = shown.drawn.convert("RGB"), io.BytesIO()
    small.thumbnail((PICTURE_SIDE_PX, PICTURE_SIDE_PX))
    small.save(out, "JPEG", quality=75)
    return dg.MetadataValue.md(f"![preview](data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()})")
