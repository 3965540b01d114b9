"""What must be fast or small, measured beside peers or limits; run by `make bench`."""
