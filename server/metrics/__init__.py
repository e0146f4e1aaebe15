"""The figures counted of requests and engines: usage, timings, and Prometheus' series."""
