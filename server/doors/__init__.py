"""Translations between other APIs, called doors, and chats of the Chat Completions API.

A request of a door's API is converted to a chat request, and the chunks of the chat's answer are
converted to the events of the door's API. The functions are pure.
"""
