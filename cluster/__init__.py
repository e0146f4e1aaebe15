"""Several servers of one model: where a request runs, and how its stream moves to another one."""
