"""Where and how code runs: devices, processes, random numbers, files."""
