"""Grouping rows: k-means, Sinkhorn, neighbours, pairs."""
