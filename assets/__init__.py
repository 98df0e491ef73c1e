"""Dagster ops, assets, checks, partitions, jobs, schedules and sensors."""
