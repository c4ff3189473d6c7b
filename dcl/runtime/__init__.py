"""Where and how it runs: devices, processes, random numbers, files."""
