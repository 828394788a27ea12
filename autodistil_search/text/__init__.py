"""Internal: documents of all sources, and blocks of tokens from a store or a stream."""
