"""Measures of clusters and features: scores, baselines, health, plots."""
