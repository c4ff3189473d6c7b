"""Grouping rows: k-means, Sinkhorn, nearest neighbours, pairs."""
