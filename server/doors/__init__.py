"""Translations of other APIs: requests become chats, and chunks of chats become events. Pure."""
