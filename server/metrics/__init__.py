"""What is counted: token usage, timings and Prometheus metrics."""
