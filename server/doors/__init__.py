"""Other APIs in front of the one chat path: their requests become a chat's, its chunks their
events. Pure."""
