"""Side by side with others: `python -m bench.peers`."""
