"""Other APIs, translated: their requests become a chat's, and its chunks their events. Pure."""
