"""From the text of an answer to its content, reasoning and tool calls. Pure."""
