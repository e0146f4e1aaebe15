"""The FastAPI app: its routes and middleware, the reading of bodies, and the making of answers."""
