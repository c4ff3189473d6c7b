"""Numbers about clusters and features: scores, baselines, health, plots."""
