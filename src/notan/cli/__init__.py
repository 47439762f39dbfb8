"""The command line: typed functions, one file for each command."""
