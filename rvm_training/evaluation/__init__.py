"""The frame that every benchmark runs in; `benchmark` holds the contract."""
