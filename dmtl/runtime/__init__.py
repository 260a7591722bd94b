"""What every room stands on: native modules, devices, memory, timing of calls, atomic files."""
