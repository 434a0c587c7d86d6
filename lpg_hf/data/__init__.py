"""Data: annotation files -> one record type -> `datasets`, and a row of such a dataset -> arrays."""
