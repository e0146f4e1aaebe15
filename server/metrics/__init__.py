"""What is counted of requests and engines: usage, timings, and the series of Prometheus."""
