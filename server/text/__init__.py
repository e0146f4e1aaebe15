"""The text process: tokenizers, templates and large bodies, under limits, beside the front end.

`client.TextProcess` is the front end's side. It spawns one host process (`host`), which imports the
tokenizer's libraries, loads a model's tokenizer, and forks workers (`worker`). A worker runs one
call at a time under limits of time and memory, so whatever a request does harms that request only:
a worker that is killed costs the milliseconds of another fork.
"""
