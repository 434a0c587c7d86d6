"""Annotation formats: each file reads one format into `records.Record` and counts problems in a `report.Report`."""
