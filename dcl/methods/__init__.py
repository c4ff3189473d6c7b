"""One file per paper: each has a `Config`, its losses, its objective and `fit`."""
