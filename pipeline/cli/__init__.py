"""The command line: one file for the flags of each command."""
