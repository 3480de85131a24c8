"""Bytes on disk or in a remote store: byte ranges, image headers, the cache folder, downloads."""
