"""Answers to chats and text completions: prompt, tools and grammar, generation, then chunks."""
