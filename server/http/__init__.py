"""The FastAPI app: who may ask, bodies in, answers and failures out, and the routes."""
