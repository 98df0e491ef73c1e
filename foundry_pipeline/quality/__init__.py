"""Is a run any good without ground truth: its tables -> findings, each with a number, its limit and the worst rows.

No Dagster here. One slice of a table is in memory at a time.
"""
