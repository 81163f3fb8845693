"""Attacks on what the project promises, from outside: processes, signals, disks, damaged files.

`make faults` runs all of them and prints a table; `make test` runs a few of each kind.
"""
