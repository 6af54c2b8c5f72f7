"""Prepared data: cases on disk, data sets, and unpaired batches."""
