"""Parsers that split the text of an answer into content, reasoning and tool calls. Pure."""
