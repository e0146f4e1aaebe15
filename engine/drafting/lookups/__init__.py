"""What all look-ups share: the protocol, the search for the best tree, and the n-gram index."""
