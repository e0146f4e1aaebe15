"""The text process: tokenizing, chat templates, grammars and large bodies, outside the HTTP server.

The process that serves HTTP is called the front end; `client.TextProcess` is the object through
which it uses the text process. It spawns one host process (`host`), which imports the tokenizer's
libraries, loads a model's tokenizer, and forks workers (`worker`). A worker runs one call at a time
under limits of time and memory. A request that exceeds them ends only its own worker, and forking
a new worker takes milliseconds.
"""
