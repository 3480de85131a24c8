"""One cached scan of a data set, and the report of a scan."""
