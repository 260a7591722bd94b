"""Damaged files against every reader: each is read, or refused with one DataError that names it.

`mutate` makes the damage, `readers` names what is read and writes valid files, `worker` is the process that
reads, with limits on its time and memory, `harness` starts it and counts. `make fuzz` is the long run.
"""
