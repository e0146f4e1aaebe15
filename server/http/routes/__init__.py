"""HTTP routes, one thin file a resource."""
