"""The Messages API of Anthropic, translated to a chat."""
