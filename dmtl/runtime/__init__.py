"""The base of all packages: native modules, devices, memory, timing of calls, atomic files."""
