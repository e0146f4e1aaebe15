"""The command line: `understudy serve`, `plan`, `models`, `pull` and `prune`."""
