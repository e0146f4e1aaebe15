"""The answer to a chat or a text completion: prompt, tools and grammar, generation, then chunks."""
