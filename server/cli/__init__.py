"""The command line, `understudy`, with one module or more for each command."""
