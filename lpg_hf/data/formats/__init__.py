"""Annotation formats: each file reads one format into `records.Record` and counts what was wrong in a `records.Report`."""
