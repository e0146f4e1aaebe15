"""The KV cache: pages on the device, prefixes that are found again, idle pages on the host."""
