"""Public data sets: one file per source, and `get`, which brings one into a folder."""

from rankloom.data.sources.acquire import SourceManifest, get, read_source_manifest
from rankloom.data.sources.catalog import SOURCES, lookup

__all__ = ["SOURCES", "SourceManifest", "get", "lookup", "read_source_manifest"]
