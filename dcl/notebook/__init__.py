"""For the chapters only: checks, claims, results."""
