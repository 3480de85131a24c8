"""DALI pipelines and in-memory data: from an index to batches on the device."""
