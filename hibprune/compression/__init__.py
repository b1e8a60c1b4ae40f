"""Which units go, and their removal."""
