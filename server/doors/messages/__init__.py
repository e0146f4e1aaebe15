"""The Messages API of Anthropic, translated to and from a chat."""
