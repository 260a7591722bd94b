"""Basic services for all packages: native modules, devices, memory, timing of calls, atomic file writes."""
