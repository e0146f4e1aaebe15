"""The Responses API of OpenAI, translated to a chat."""
