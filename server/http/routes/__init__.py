"""The routes. Every module of this package defines an `api`, which the app adds to its routes."""
