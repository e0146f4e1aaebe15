"""Answers to chats and text completions: prompts, tools, grammars, generation, stream chunks."""
