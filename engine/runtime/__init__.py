"""One step of the engine: schedule, draft, forward, verify, emit."""
