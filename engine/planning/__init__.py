"""The memory plan: where weights and KV are kept, and the speed to expect from it."""
