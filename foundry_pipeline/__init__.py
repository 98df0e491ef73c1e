"""The domain of foundry-pipeline: manifests, data rows, calls, ledgers, decoding, tables, exports. Knows no Dagster."""
