"""The engine process: both ends of its pipe, and how it is supervised and restarted."""
