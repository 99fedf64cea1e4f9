"""Public data sets: one file per source, and `get`, which brings one into a folder."""

from rankloom.data.sources.catalog import SOURCES, lookup
from rankloom.data.sources.get import SourceManifest, get, read_source_manifest

__all__ = ["SOURCES", "SourceManifest", "get", "lookup", "read_source_manifest"]
