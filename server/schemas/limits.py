"""How much a body may hold. The bounds protect the server; no client in use comes near them.

Length in bytes is a setting (`max_body_bytes`). These bounds are about what takes time and memory
out of proportion to its bytes: `server.schemas.scan` checks depth and values while a body arrives,
the schemas check the lists, and /openapi.json says their bounds.
"""

MAX_DEPTH = 64  # arrays and objects within each other: parsers, templates and grammars recurse
MAX_IDS = 200_000  # token ids of a list, 1.2 MB of digits; a longer prompt can be sent as text
# All values of a body, keys left out: the longest prompt and the fields beside it. A value of one
# or two bytes becomes an object of up to 1 KB.
MAX_VALUES = MAX_IDS + 100

# Messages, items and blocks of a conversation, and the parts of a message. Agents reach some
# thousands; with some ten values each, more would not pass `MAX_VALUES` anyway.
MAX_MESSAGES = 20_000
MAX_TOOLS = 20_000  # agents offer some hundreds; the size of the body bounds them first
MAX_PROMPTS = 2048  # of one request; evaluation harnesses send some hundreds
MAX_CHOICES = 20_000  # strings of `structured_outputs.choice`; all become one grammar
MAX_STOPS = 1024  # stop strings of one request; all are looked for at every token
MAX_STOP_LENGTH = 65_536  # characters of all stop strings of a request
MAX_STOP_IDS = 16_384
MAX_BIASES = MAX_IDS  # clients ban whole scripts: some ten thousand tokens
MAX_NAMES = 1024  # short lists of names and free pairs: `include`, `metadata`
