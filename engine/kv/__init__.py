"""The KV cache: pages in device memory, an index of stored prefixes, idle pages in host memory."""
