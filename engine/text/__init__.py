"""From token ids to text: tokenizer files, incremental detokenization, stop rules."""
