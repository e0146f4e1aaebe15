"""The Responses API of OpenAI, translated to and from a chat."""
