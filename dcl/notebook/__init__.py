"""What only chapters need: checks, claims, results."""
