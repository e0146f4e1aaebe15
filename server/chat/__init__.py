"""From a request to chunks: prompts, tools, grammars, generation and its answers."""
