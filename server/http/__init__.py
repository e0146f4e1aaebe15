"""The FastAPI app: authentication, protocol limits, request bodies and streams."""
