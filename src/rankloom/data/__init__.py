"""From raw tables to batches: prepare, store, loader, sources."""
