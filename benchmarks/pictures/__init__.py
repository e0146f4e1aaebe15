"""Make the pictures of the documentation that are not taken in a browser: `make pictures`."""
